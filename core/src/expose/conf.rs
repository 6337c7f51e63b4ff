//! containers-storage.conf(5): one more entry in `additionalimagestores`, and nothing else of it changed.
//!
//! Text in, text out. podman 5.4 reads no drop-ins of that file, so what the administrator wrote there stays as it is,
//! comments included; a file that this cannot be done to is left alone, and he is told the line.

use serde::Deserialize;

/// What a file becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It says so already.
    Nothing,
    /// This text.
    Text(String),
    /// No file: it holds nothing but what we have written there.
    Gone,
    /// It has to be done by hand: why.
    ByHand(String),
}

const KEY: &str = "additionalimagestores";

/// What a file that is not there begins with: what podman takes without one.
const NEW: &str = "# Made by `cfs-update image expose`.\n[storage]\ndriver = \"overlay\"\nrunroot = \"/run/containers/storage\"\n\
                   graphroot = \"/var/lib/containers/storage\"\n";

#[derive(Default, Deserialize)]
struct File {
    #[serde(default)]
    storage: Storage,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Storage {
    driver: String,
    options: Options,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Options {
    additionalimagestores: Option<Vec<String>>,
}

fn stores(text: &str) -> Result<Option<Vec<String>>, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
    Ok(file.storage.options.additionalimagestores)
}

/// What a new file begins with. podman reads one file only, so a new one has to say what the vendor's says.
fn new(vendor: Option<&str>) -> String {
    match vendor {
        Some(vendor) => format!("# Made by `cfs-update image expose` of the vendor's.\n{vendor}"),
        None => NEW.into(),
    }
}

/// The additional stores that a file names.
pub fn named(text: &str) -> Vec<String> {
    stores(text).ok().flatten().unwrap_or_default()
}

/// What in a file keeps podman from showing a store of this kind.
pub fn doubts(text: &str) -> Vec<String> {
    let Ok(File { storage }) = toml::from_str(text) else {
        return Vec::new();
    };
    let mut doubts = Vec::new();
    if !["", "overlay", "overlay2"].contains(&storage.driver.as_str()) {
        doubts.push(format!(
            "the driver is {:?}: podman shows the images with the driver \"overlay\" only",
            storage.driver
        ));
    }
    doubts
}

/// With `store` among the additional stores. `text`: the file, if there is one; else it becomes one like the
/// `vendor`'s.
pub fn add(text: Option<&str>, vendor: Option<&str>, store: &str) -> Change {
    let quoted = toml::Value::String(store.into()).to_string();
    let made = new(vendor);
    let text = text.unwrap_or(&made);
    let there = match stores(text) {
        Ok(there) => there,
        Err(why) => return Change::ByHand(why),
    };
    let changed = match &there {
        Some(there) if there.iter().any(|other| other == store) => return Change::Nothing,
        Some(there) => {
            let more = if there.is_empty() { "" } else { ", " };
            in_arrays(text, |inside| format!("{quoted}{more}{inside}"))
        }
        None => with_key(text, &format!("{KEY} = [{quoted}]")),
    };
    let mut expected = vec![store.to_owned()];
    expected.extend(there.into_iter().flatten());
    checked(changed, Some(expected))
}

/// Without `store` among the additional stores.
pub fn remove(text: Option<&str>, vendor: Option<&str>, store: &str) -> Change {
    let Some(text) = text else {
        return Change::Nothing;
    };
    if add(None, vendor, store) == Change::Text(text.into()) {
        return Change::Gone;
    }
    let there = match stores(text) {
        Ok(there) => there.unwrap_or_default(),
        Err(why) => return Change::ByHand(why),
    };
    if there.iter().all(|other| other != store) {
        return Change::Nothing;
    }
    let quoted = toml::Value::String(store.into()).to_string();
    let left: Vec<String> = there.into_iter().filter(|other| other != store).collect();
    let without = |inside: &str| {
        let cut = inside.replacen(&format!("{quoted}, "), "", 1);
        match cut == inside {
            true => inside.replacen(&quoted, "", 1).replacen(",,", ",", 1),
            false => cut,
        }
    };
    checked(in_arrays(text, without), Some(left))
}

/// The first that says exactly the expected thing: the key or the header may stand in another table or in a text, too.
fn checked(changed: Vec<String>, expected: Option<Vec<String>>) -> Change {
    let expected = Ok(expected);
    let done = changed.into_iter().find(|text| stores(text) == expected);
    done.map_or_else(
        || {
            Change::ByHand(format!(
                "{KEY} is written there in a way that is not changed by a program"
            ))
        },
        Change::Text,
    )
}

/// The line as the first of its section, wherever a header of that seems to be, or in a new one.
fn with_key(text: &str, line: &str) -> Vec<String> {
    let mut changed = Vec::new();
    let mut at = 0;
    for old in text.split_inclusive('\n') {
        at += old.len();
        if old.split('#').next().unwrap_or_default().trim() == "[storage.options]" {
            let end = if old.ends_with('\n') { "" } else { "\n" };
            changed.push(format!("{}{end}{line}\n{}", &text[..at], &text[at..]));
        }
    }
    let end = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    changed.push(format!("{text}{end}\n[storage.options]\n{line}\n"));
    changed
}

/// With a change of what stands between the brackets of the key, wherever that seems to be.
fn in_arrays(text: &str, change: impl Fn(&str) -> String) -> Vec<String> {
    let mut changed = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let rest = line.trim_start().strip_prefix(KEY).map(str::trim_start);
        let open = line.find('[').map(|open| at + open + 1);
        if let Some(open) = open.filter(|_| rest.is_some_and(|rest| rest.starts_with('=')))
            && let Some(close) = text[open..].find(']').map(|close| open + close)
        {
            let inside = change(&text[open..close]);
            changed.push(format!("{}{inside}{}", &text[..open], &text[close..]));
        }
        at += line.len();
    }
    changed
}

#[cfg(test)]
#[allow(clippy::panic, clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(change: Change) -> String {
        match change {
            Change::Text(text) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_store_is_added_once_and_all_else_stays() {
        for before in [
            "",
            "[storage]\ndriver = \"overlay\" # mine\n",
            "[storage]\n[storage.options] # here\nsize = \"1\"\n[storage.options.overlay]\nmountopt = \"nodev\"\n",
            "[storage.options]\nadditionalimagestores = [\n  \"/a\",  # one\n]\n",
            "[storage.options]\n# additionalimagestores = [ ]\nadditionalimagestores = []\n",
        ] {
            let after = text(add(Some(before), None, "/x y\"z"));
            for line in before.lines().filter(|line| !line.contains("additional")) {
                assert!(after.contains(line), "{line}: {after}");
            }
            assert_eq!(add(Some(&after), None, "/x y\"z"), Change::Nothing);
            let back = text(remove(Some(&after), None, "/x y\"z"));
            assert_eq!(
                stores(&back).map(Option::unwrap_or_default),
                stores(before).map(Option::unwrap_or_default)
            );
            assert_eq!(remove(Some(&back), None, "/x y\"z"), Change::Nothing);
        }
        assert!(text(add(None, None, "/x")).contains("graphroot"));
        assert_eq!(remove(None, None, "/x"), Change::Nothing);
    }

    #[test]
    fn a_new_file_says_what_the_vendors_says_and_goes_when_nobody_changed_it() {
        let vendor =
            "[storage]\ngraphroot = \"/srv/c\"\n[storage.options]\nadditionalimagestores = [\n  \"/usr/lib/x\",\n]\n";
        for vendor in [None, Some(vendor)] {
            let made = text(add(None, vendor, "/x"));
            assert!(
                vendor.is_none_or(|vendor| made.contains("graphroot = \"/srv/c\"") && vendor.contains("/usr/lib/x"))
            );
            assert_eq!(remove(Some(&made), vendor, "/x"), Change::Gone);
            let more = format!("{made}# the administrator's\n");
            assert!(text(remove(Some(&more), vendor, "/x")).contains("the administrator's"));
        }
    }

    #[test]
    fn what_keeps_podman_from_showing_the_store_is_found() {
        for (text, count) in [
            ("", 0),
            (
                "[storage]\ndriver = \"overlay\"\n[storage.options.overlay]\nuse_composefs = \"false\"\n",
                0,
            ),
            ("[storage]\ndriver = \"vfs\"\n", 1),
            // podman runs them with that, too, once it has its `mkcomposefs`.
            ("[storage.options.overlay]\nuse_composefs = \"true\"\n", 0),
        ] {
            assert_eq!(doubts(text).len(), count, "{text}");
        }
    }

    #[test]
    fn the_key_and_the_header_are_found_behind_others_that_look_the_same() {
        let other = "[other]\nadditionalimagestores = [\"/a\"]\n[other.storage]\n";
        let in_text = "note = \"\"\"\n[storage.options]\nadditionalimagestores = []\n\"\"\"\n";
        for before in [
            format!("{other}[storage.options]\nsize = \"1\"\n"),
            format!("{in_text}[storage]\n[storage.options]\nsize = \"1\"\n"),
            format!("{in_text}{other}[storage.options]\nadditionalimagestores = [\"/b\"]\n"),
            format!("{in_text}{other}"),
        ] {
            let after = text(add(Some(&before), None, "/x"));
            assert_eq!(stores(&after).unwrap().unwrap()[0], "/x");
            let back = text(remove(Some(&after), None, "/x"));
            let named = |text: &str| stores(text).unwrap().unwrap_or_default();
            assert_eq!(named(&back), named(&before));
            assert!(
                back.contains(other) == before.contains(other) && back.contains(in_text) == before.contains(in_text)
            );
        }
    }

    #[test]
    fn line_ends_stay_as_they_are() {
        let after = text(add(
            Some("[storage]\r\n[storage.options]\r\nsize = \"\"\r\n"),
            None,
            "/x",
        ));
        assert_eq!(after.matches("\r\n").count(), 3, "{after:?}");
    }

    #[test]
    fn a_file_that_is_not_understood_is_left_alone() {
        for odd in [
            "nonsense",
            "[storage]\noptions = {additionalimagestores = [\"/a\"]}\n",
            "storage.options.size = \"\"\n[storage.options]\n",
        ] {
            assert!(matches!(add(Some(odd), None, "/x"), Change::ByHand(_)), "{odd}");
        }
    }
}
