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
struct Storage {
    #[serde(default)]
    options: Options,
}

#[derive(Default, Deserialize)]
struct Options {
    #[serde(default)]
    additionalimagestores: Option<Vec<String>>,
}

fn stores(text: &str) -> Result<Option<Vec<String>>, String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())?;
    Ok(file.storage.options.additionalimagestores)
}

/// With `store` among the additional stores. `text`: the file, if there is one.
pub fn add(text: Option<&str>, store: &str) -> Change {
    let quoted = toml::Value::String(store.into()).to_string();
    let text = text.unwrap_or(NEW);
    let there = match stores(text) {
        Ok(there) => there,
        Err(why) => return Change::ByHand(why),
    };
    let changed = match &there {
        Some(there) if there.iter().any(|other| other == store) => return Change::Nothing,
        Some(there) => {
            let more = if there.is_empty() { "" } else { ", " };
            in_array(text, |inside| format!("{quoted}{more}{inside}"))
        }
        None => Some(with_key(text, &format!("{KEY} = [{quoted}]"))),
    };
    let mut expected = vec![store.to_owned()];
    expected.extend(there.into_iter().flatten());
    checked(changed, Some(expected))
}

/// Without `store` among the additional stores.
pub fn remove(text: Option<&str>, store: &str) -> Change {
    let Some(text) = text else {
        return Change::Nothing;
    };
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
    checked(in_array(text, without), Some(left))
}

/// Only what says exactly the expected thing is written.
fn checked(changed: Option<String>, expected: Option<Vec<String>>) -> Change {
    match changed {
        Some(text) if stores(&text) == Ok(expected) => Change::Text(text),
        _ => Change::ByHand(format!(
            "{KEY} is written there in a way that is not changed by a program"
        )),
    }
}

/// The line as the first of its section, which is made where it is missing.
fn with_key(text: &str, line: &str) -> String {
    let mut out = String::new();
    let mut done = false;
    for old in text.lines() {
        out.push_str(old);
        out.push('\n');
        if !done && old.split('#').next().unwrap_or_default().trim() == "[storage.options]" {
            out.push_str(line);
            out.push('\n');
            done = true;
        }
    }
    if !done {
        out.push_str(&format!("\n[storage.options]\n{line}\n"));
    }
    out
}

/// Changes what stands between the brackets of the key.
fn in_array(text: &str, change: impl Fn(&str) -> String) -> Option<String> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let rest = line.trim_start().strip_prefix(KEY).map(str::trim_start);
        if rest.is_some_and(|rest| rest.starts_with('=')) {
            let open = at + line.find('[')? + 1;
            let close = open + text[open..].find(']')?;
            return Some(format!(
                "{}{}{}",
                &text[..open],
                change(&text[open..close]),
                &text[close..]
            ));
        }
        at += line.len();
    }
    None
}

#[cfg(test)]
#[allow(clippy::panic)]
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
            let after = text(add(Some(before), "/x y\"z"));
            for line in before.lines().filter(|line| !line.contains("additional")) {
                assert!(after.contains(line), "{line}: {after}");
            }
            assert_eq!(add(Some(&after), "/x y\"z"), Change::Nothing);
            let back = text(remove(Some(&after), "/x y\"z"));
            assert_eq!(
                stores(&back).map(Option::unwrap_or_default),
                stores(before).map(Option::unwrap_or_default)
            );
            assert_eq!(remove(Some(&back), "/x y\"z"), Change::Nothing);
        }
        assert!(text(add(None, "/x")).contains("graphroot"));
        assert_eq!(remove(None, "/x"), Change::Nothing);
    }

    #[test]
    fn a_file_that_is_not_understood_is_left_alone() {
        for odd in [
            "nonsense",
            "[storage]\noptions = {additionalimagestores = [\"/a\"]}\n",
            "storage.options.size = \"\"\n[storage.options]\n",
        ] {
            assert!(matches!(add(Some(odd), "/x"), Change::ByHand(_)), "{odd}");
        }
    }
}
