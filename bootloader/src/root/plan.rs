//! What is to be mounted, decided without doing it. Pure: `--dry-run`, the run itself and the tests cannot disagree.

use std::fmt;

use cfs_core::ids::ObjectId;

use crate::config::{Config, Etc};
use crate::image::Proof;

/// What the decision rests on beside the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The image.
    pub id: ObjectId,
    /// What its digest rests on.
    pub proof: Proof,
    /// The physical root is mounted read-only.
    pub read_only: bool,
    /// The new root takes the place of the physical one.
    pub in_place: bool,
}

/// A folder of the new root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// /
    Root,
    /// /etc
    Etc,
    /// /var
    Var,
}

/// One mount, or what comes before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The physical root becomes writable: /etc and /var are on it.
    MakeWritable,
    /// The image, read-only, under its source string.
    Image { id: ObjectId, proof: Proof },
    /// The deployment's folder over the image's.
    Bind(Place),
    /// An overlay over the image's folder, kept in the deployment's.
    Overlay(Place),
    /// An overlay that the next boot forgets; of / it has a source string.
    Transient(Place, ObjectId),
    /// The physical root at /sysroot of the new one.
    Sysroot,
    /// The new root in place of the physical one.
    TakeOver,
    /// The new root at another place.
    PutOver,
    /// A note for systemd: the device under /.
    NoteDevice,
}

/// The steps, in order: / before what is in it, the place where everybody looks last.
pub fn plan(config: &Config, facts: &Facts) -> Vec<Step> {
    let mut steps = Vec::new();
    if facts.read_only && config.uses_state() {
        steps.push(Step::MakeWritable);
    }
    steps.push(Step::Image {
        id: facts.id,
        proof: facts.proof,
    });
    if config.transient {
        steps.push(Step::Transient(Place::Root, facts.id));
    }
    match config.etc {
        Etc::None => {}
        Etc::Bind => steps.push(Step::Bind(Place::Etc)),
        Etc::Overlay => steps.push(Step::Overlay(Place::Etc)),
        // A transient root has a transient /etc.
        Etc::Transient if config.transient => {}
        Etc::Transient => steps.push(Step::Transient(Place::Etc, facts.id)),
    }
    if config.binds_var() {
        steps.push(Step::Bind(Place::Var));
    }
    steps.push(Step::Sysroot);
    if facts.in_place {
        steps.extend([Step::NoteDevice, Step::TakeOver]);
    } else {
        steps.push(Step::PutOver);
    }
    steps
}

impl Place {
    /// The folder's name in the root; empty for / itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "",
            Self::Etc => "etc",
            Self::Var => "var",
        }
    }
}

impl Step {
    /// The source string that other tools find the booted deployment by.
    pub fn source(&self) -> String {
        match self {
            Self::Image { id, .. } => format!("composefs:{id}"),
            Self::Transient(Place::Root, id) => format!("transient:composefs={id}"),
            Self::Transient(..) => "transient".into(),
            _ => "overlay".into(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeWritable => write!(f, "remount the physical root for writing"),
            Self::Image { proof, .. } => write!(f, "mount {} on / ({proof})", self.source()),
            Self::Bind(place) => write!(f, "bind the deployment's {0} to /{0}", place.name()),
            Self::Overlay(place) => write!(
                f,
                "mount an overlay on /{0}, kept in the deployment's {0}",
                place.name()
            ),
            Self::Transient(place, _) => write!(f, "mount {} on /{}", self.source(), place.name()),
            Self::Sysroot => write!(f, "bind the physical root to /sysroot"),
            Self::TakeOver => write!(f, "mount the new root in place of the physical one"),
            Self::PutOver => write!(f, "mount the new root on the target"),
            Self::NoteDevice => write!(f, "tell systemd the device of the physical root"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Var;

    fn id() -> ObjectId {
        "ab".repeat(32).parse().unwrap()
    }

    fn steps(config: Config, read_only: bool, in_place: bool) -> Vec<Step> {
        let facts = Facts {
            id: id(),
            proof: Proof::Verity,
            read_only,
            in_place,
        };
        plan(&config, &facts)
    }

    const IMAGE: fn() -> Step = || Step::Image {
        id: id(),
        proof: Proof::Verity,
    };

    #[test]
    fn by_default_etc_and_var_are_the_deployments_and_the_new_root_takes_over_last() {
        let expected = [
            IMAGE(),
            Step::Bind(Place::Etc),
            Step::Bind(Place::Var),
            Step::Sysroot,
            Step::NoteDevice,
            Step::TakeOver,
        ];
        assert_eq!(steps(Config::default(), false, true), expected);
    }

    #[test]
    fn a_read_only_physical_root_becomes_writable_where_something_on_it_is_to_be_written() {
        assert_eq!(steps(Config::default(), true, true)[0], Step::MakeWritable);
        let stateless = Config {
            etc: Etc::Transient,
            var: Some(Var::None),
            ..Config::default()
        };
        assert_eq!(
            steps(stateless, true, true)[..3],
            [IMAGE(), Step::Transient(Place::Etc, id()), Step::Sysroot]
        );
    }

    #[test]
    fn a_transient_root_comes_before_what_is_mounted_in_it() {
        let config = Config {
            transient: true,
            etc: Etc::Overlay,
            ..Config::default()
        };
        let both = Config {
            etc: Etc::Transient,
            ..config
        };
        assert!(!steps(both, false, false).contains(&Step::Transient(Place::Etc, id())));
        let steps = steps(config, false, false);
        assert_eq!(
            steps[1..],
            [
                Step::Transient(Place::Root, id()),
                Step::Overlay(Place::Etc),
                Step::Bind(Place::Var),
                Step::Sysroot,
                Step::PutOver
            ]
        );
        assert_eq!(steps[1].source(), format!("transient:composefs={}", id()));
        assert_eq!(steps[0].source(), format!("composefs:{}", id()));
    }
}
