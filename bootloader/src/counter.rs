//! Boot counting in file names: `NAME+LEFT[-DONE].conf`.
//!
//! Arithmetic on names as in the Boot Loader Specification, "Boot counting", and in systemd-boot; no I/O. A counter is
//! one only directly before `.conf` or `.efi` and only if it is well formed; anything else is part of the name. Digits
//! keep their width, so that renaming on FAT never needs a longer name: `+10-00` becomes `+09-01`.

use std::fmt;

use cfs_core::boot::Tries;

/// A file name, taken apart; `Display` puts it together again, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedName {
    stem: String,
    counter: Option<Counter>,
    suffix: String,
}

/// The digits of `+LEFT[-DONE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counter {
    left: Number,
    done: Option<Number>,
}

/// A number that is written with a certain width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number {
    value: u32,
    width: usize,
}

impl CountedName {
    /// A new name; `tries` of 1 to 99 become `+NN-00`.
    pub fn new(stem: &str, tries: Option<u8>, suffix: &str) -> Self {
        let number = |value: u8| Number {
            value: value.into(),
            width: 2,
        };
        Self {
            stem: stem.into(),
            counter: tries.map(|left| Counter {
                left: number(left),
                done: Some(number(0)),
            }),
            suffix: suffix.into(),
        }
    }

    /// Takes any file name apart. Without a `.conf` or `.efi` (in any case) at the end, there is no counter.
    pub fn parse(name: &str) -> Self {
        let whole = |stem: &str, suffix: &str| Self {
            stem: stem.into(),
            counter: None,
            suffix: suffix.into(),
        };
        let Some((stem, suffix)) = name.rfind('.').map(|dot| name.split_at(dot)) else {
            return whole(name, "");
        };
        if !suffix.eq_ignore_ascii_case(".conf") && !suffix.eq_ignore_ascii_case(".efi") {
            return whole(name, "");
        }
        let counter = stem
            .rsplit_once('+')
            .and_then(|(stem, text)| Some((stem, Counter::parse(text)?)));
        match counter {
            Some((stem, counter)) => Self {
                counter: Some(counter),
                ..whole(stem, suffix)
            },
            None => whole(stem, suffix),
        }
    }

    /// The name without counter and suffix.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// `.conf`, `.efi` or nothing, as written.
    pub fn suffix(&self) -> &str {
        &self.suffix
    }

    /// The name without a counter: what the entry is called in `loader.conf` and in EFI variables.
    pub fn id(&self) -> String {
        format!("{}{}", self.stem, self.suffix)
    }

    /// What the counter says.
    pub fn tries(&self) -> Tries {
        match &self.counter {
            None => Tries::Good,
            Some(counter) => {
                let done = counter.done.map_or(0, |done| done.value);
                match counter.left.value {
                    0 => Tries::Bad { done },
                    left => Tries::Left { left, done },
                }
            }
        }
    }

    /// The name that the boot loader gives the entry before it boots it: one try fewer left, one more done.
    #[must_use]
    pub fn tried(&self) -> Self {
        let mut next = self.clone();
        if let Some(counter) = &mut next.counter {
            counter.left.value = counter.left.value.saturating_sub(1);
            counter.done = Some(match counter.done {
                Some(done) => done.plus_one(),
                None => Number { value: 1, width: 1 },
            });
        }
        next
    }

    /// The name of an entry that booted well: no counter. Marking twice changes nothing.
    #[must_use]
    pub fn good(&self) -> Self {
        Self {
            counter: None,
            ..self.clone()
        }
    }

    /// The name of an entry that must not be booted any more: no try left. Marking twice changes nothing.
    #[must_use]
    pub fn bad(&self) -> Self {
        let none = Number { value: 0, width: 2 };
        let counter = match &self.counter {
            Some(counter) => Counter {
                left: Number {
                    value: 0,
                    ..counter.left
                },
                done: counter.done,
            },
            None => Counter {
                left: none,
                done: Some(none),
            },
        };
        Self {
            counter: Some(counter),
            ..self.clone()
        }
    }
}

impl fmt::Display for CountedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.stem)?;
        if let Some(counter) = &self.counter {
            write!(f, "+{}", counter.left)?;
            if let Some(done) = counter.done {
                write!(f, "-{done}")?;
            }
        }
        f.write_str(&self.suffix)
    }
}

impl Counter {
    fn parse(text: &str) -> Option<Self> {
        Some(match text.split_once('-') {
            None => Self {
                left: Number::parse(text)?,
                done: None,
            },
            Some((left, done)) => Self {
                left: Number::parse(left)?,
                done: Some(Number::parse(done)?),
            },
        })
    }
}

impl Number {
    /// systemd-boot takes no number above that of a C `int`.
    fn parse(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let value = text
            .parse()
            .ok()
            .filter(|value| digits && i32::try_from(*value).is_ok())?;
        Some(Self {
            value,
            width: text.len(),
        })
    }

    /// Stays at the highest number of its width.
    fn plus_one(self) -> Self {
        let next = Self {
            value: self.value.saturating_add(1),
            ..self
        };
        if next.to_string().len() > self.width {
            self
        } else {
            next
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0width$}", self.value, width = self.width)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Names in the order in which a boot loader gives them to an entry that never boots well.
    fn series(first: &str) -> Vec<String> {
        let mut name = CountedName::parse(first);
        let mut names = Vec::new();
        while !matches!(name.tries(), Tries::Bad { .. }) {
            name = name.tried();
            names.push(name.to_string());
        }
        names
    }

    #[test]
    fn each_try_is_counted_from_left_to_done() {
        assert_eq!(series("a+3.conf"), ["a+2-1.conf", "a+1-2.conf", "a+0-3.conf"]);
        assert_eq!(series("a+03-00.efi"), ["a+02-01.efi", "a+01-02.efi", "a+00-03.efi"]);
        assert_eq!(series("a+4-0.conf").last().unwrap(), "a+0-4.conf");
    }

    #[test]
    fn digits_keep_their_width_and_stop_at_its_highest_number() {
        assert_eq!(CountedName::parse("a+10-00.conf").tried().to_string(), "a+09-01.conf");
        assert_eq!(CountedName::parse("a+100-9.conf").tried().to_string(), "a+099-9.conf");
        assert_eq!(CountedName::parse("a+02-99.conf").tried().to_string(), "a+01-99.conf");
        assert_eq!(CountedName::new("a", Some(3), ".conf").to_string(), "a+03-00.conf");
        assert_eq!(CountedName::new("a", None, ".conf").to_string(), "a.conf");
    }

    #[test]
    fn marking_good_or_bad_twice_is_success() {
        let name = CountedName::parse("a+02-01.conf");
        assert_eq!(name.good().to_string(), "a.conf");
        assert_eq!(name.good().good(), name.good());
        assert_eq!(name.bad().to_string(), "a+00-01.conf");
        assert_eq!(name.bad().bad(), name.bad());
        assert_eq!(name.good().bad().to_string(), "a+00-00.conf");
        assert_eq!(name.bad().good(), name.good());
    }

    #[test]
    fn what_is_no_counter_is_part_of_the_name() {
        for name in [
            "a+.conf",
            "a+3-.conf",
            "a+-3.conf",
            "a+3-1-1.conf",
            "a+x.conf",
            "a+3 .conf",
            "a+3.conf.bak",
            "a+3",
            "a+2147483648.conf",
            "a+99999999999999999999.conf",
            "a+3-+3x.conf",
            "a++.conf",
        ] {
            let parsed = CountedName::parse(name);
            assert_eq!(parsed.tries(), Tries::Good, "{name}");
            assert_eq!(parsed.to_string(), name);
            assert_eq!(parsed.tried().to_string(), name);
        }
        assert_eq!(CountedName::parse("a+1+2.conf").stem(), "a+1");
        assert_eq!(CountedName::parse("A+2-1.CONF").id(), "A.CONF");
    }

    #[test]
    fn no_try_left_is_bad_however_it_is_written() {
        assert_eq!(CountedName::parse("a+0-3.conf").tries(), Tries::Bad { done: 3 });
        assert_eq!(CountedName::parse("a+0.conf").tries(), Tries::Bad { done: 0 });
        assert_eq!(CountedName::parse("a+00-00.conf").tries(), Tries::Bad { done: 0 });
        assert_eq!(
            CountedName::parse("a+99-00.conf").tries(),
            Tries::Left { left: 99, done: 0 }
        );
    }

    proptest! {
        #[test]
        fn every_name_is_put_together_as_it_was(name in "[a-c+0-9.-]{0,12}(\\.conf|\\.efi|\\.CONF|)") {
            prop_assert_eq!(CountedName::parse(&name).to_string(), name);
        }

        #[test]
        fn a_name_of_ours_never_grows(left in 1u8..100, boots in 0usize..120) {
            let mut name = CountedName::new("cfs-000001-abababababab", Some(left), ".conf");
            let length = name.to_string().len();
            for _ in 0..boots {
                name = name.tried();
                prop_assert_eq!(name.to_string().len(), length);
                prop_assert_eq!(&CountedName::parse(&name.to_string()), &name);
            }
        }
    }
}
