//! Kernel command lines as text: taking them apart and putting them together.
//!
//! Rules of the kernel's own parser (`lib/cmdline.c`, `next_arg`): arguments are separated by white space; double
//! quotes keep white space together, anywhere in an argument, and cannot be escaped; the value begins after the first
//! `=`. Pure.

use crate::ids::{Algorithm, ObjectId};

/// The key of the argument that names the image to mount, in the form that says format and algorithm.
pub const DIGEST_KEY: &str = "composefs.digest";

/// Takes a command line apart; arguments keep their quotes, so that joining them with a space gives the same meaning.
/// An unclosed quote reaches to the end, as in the kernel.
pub fn split(line: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut argument = String::new();
    let mut quoted = false;
    for c in line.chars() {
        if c == '"' {
            quoted = !quoted;
        }
        if c.is_ascii_whitespace() && !quoted {
            if !argument.is_empty() {
                arguments.push(std::mem::take(&mut argument));
            }
        } else {
            argument.push(c);
        }
    }
    if !argument.is_empty() {
        arguments.push(argument);
    }
    arguments
}

/// The line that [`split`] takes apart into `arguments`, given that each passes [`check`].
pub fn join<S: AsRef<str>>(arguments: &[S]) -> String {
    let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    arguments.join(" ")
}

/// Whether `argument` is one argument that stays one, also in a boot entry: not empty, quotes closed, white space
/// inside them only, nothing that ends a line.
pub fn check(argument: &str) -> Result<(), &'static str> {
    if argument.is_empty() {
        return Err("is empty");
    }
    if argument.chars().any(char::is_control) {
        return Err("has a control character; write each argument on one line");
    }
    if argument.matches('"').count() % 2 == 1 {
        return Err("has an unclosed quote");
    }
    if split(argument) != [argument] {
        return Err("is more than one argument; put double quotes around white space");
    }
    Ok(())
}

/// What an image or the machine may want of every entry: one argument, and not the digest of an image, which each entry
/// has its own of.
pub fn check_wish(argument: &str) -> Result<(), String> {
    check(argument).map_err(|why| format!("kernel argument {argument:?} {why}"))?;
    match names_image(argument) {
        true => Err(format!(
            "kernel argument {argument:?} names an image, as each boot entry does itself; leave it out"
        )),
        false => Ok(()),
    }
}

/// Key and value of an argument, quotes removed; no value where there is no `=`.
pub fn key_value(argument: &str) -> (String, Option<String>) {
    let plain = |s: &str| s.replace('"', "");
    match argument.split_once('=') {
        Some((key, value)) => (plain(key), Some(plain(value))),
        None => (plain(argument), None),
    }
}

/// Whether two arguments, or keys, have the same key. As for the kernel's own parameters, `-` and `_` in keys are the
/// same.
pub fn same_key(one: &str, other: &str) -> bool {
    let key = |argument| key_value(argument).0.replace('-', "_");
    key(one) == key(other)
}

/// Whether the argument names the image to mount.
pub fn names_image(argument: &str) -> bool {
    [DIGEST_KEY, "composefs"].iter().any(|key| same_key(argument, key))
}

/// The values of all arguments with this key, in order; `-` and `_` in keys are the same.
pub fn values<S: AsRef<str>>(arguments: &[S], key: &str) -> Vec<String> {
    let same = |own: &str| own.replace('-', "_") == key.replace('-', "_");
    let pairs = arguments.iter().map(|argument| key_value(argument.as_ref()));
    pairs
        .filter(|(own, _)| same(own))
        .filter_map(|(_, value)| value)
        .collect()
}

/// What a `composefs.digest=` argument says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestArgument {
    /// The image.
    pub id: ObjectId,
    /// EROFS format: 1 or 2.
    pub format: u8,
    /// `?`: it may be mounted without fs-verity.
    pub optional: bool,
}

/// The argument that names an image of format 1: `composefs.digest=v1-sha256-12:<hex>`.
///
/// `insecure` puts a `?` before it: the initramfs then mounts it on a file system without fs-verity, too.
pub fn digest_argument(id: &ObjectId, insecure: bool) -> String {
    let mark = if insecure { "?" } else { "" };
    format!("{DIGEST_KEY}={mark}{}:{id}", id.algorithm().karg_tag())
}

/// Images that the arguments name, in the order in which an initramfs tries them: every well-formed
/// `composefs.digest=`, then every `composefs=` (format 2, the length tells the algorithm).
pub fn digests<S: AsRef<str>>(arguments: &[S]) -> Vec<DigestArgument> {
    let new = values(arguments, DIGEST_KEY)
        .into_iter()
        .filter_map(|value| parse_digest(&value));
    let old = values(arguments, "composefs")
        .into_iter()
        .filter_map(|value| parse_old(&value));
    new.chain(old).collect()
}

fn parse_digest(value: &str) -> Option<DigestArgument> {
    let (value, optional) = strip_optional(value);
    let (tag, hex) = value.split_once(':')?;
    let (format, algorithm) = match tag {
        "v1-sha256-12" => (1, Algorithm::Sha256),
        "v1-sha512-12" => (1, Algorithm::Sha512),
        "v2-sha256-12" => (2, Algorithm::Sha256),
        "v2-sha512-12" => (2, Algorithm::Sha512),
        _ => return None,
    };
    let id: ObjectId = hex.parse().ok()?;
    (id.algorithm() == algorithm).then_some(DigestArgument { id, format, optional })
}

fn parse_old(value: &str) -> Option<DigestArgument> {
    let (value, optional) = strip_optional(value);
    let id = value.parse().ok()?;
    Some(DigestArgument {
        id,
        format: 2,
        optional,
    })
}

fn strip_optional(value: &str) -> (&str, bool) {
    match value.strip_prefix('?') {
        Some(rest) => (rest, true),
        None => (value, false),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> ObjectId {
        "ab".repeat(32).parse().unwrap()
    }

    #[test]
    fn quotes_keep_white_space_together_wherever_they_are() {
        let line = "  quiet\tdyndbg=\"file a.c +p\"  \"init=/bin/my shell\"  x=\n";
        let arguments = split(line);
        assert_eq!(
            arguments,
            ["quiet", "dyndbg=\"file a.c +p\"", "\"init=/bin/my shell\"", "x="]
        );
        assert_eq!(key_value(&arguments[1]), ("dyndbg".into(), Some("file a.c +p".into())));
        assert_eq!(key_value(&arguments[2]), ("init".into(), Some("/bin/my shell".into())));
        assert_eq!(key_value("quiet"), ("quiet".into(), None));
    }

    #[test]
    fn what_would_become_two_arguments_or_two_lines_is_refused() {
        for bad in ["", "a b", "a\nb", "a\"b c", "\0", "a\r", " a"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "a=\"b c\"", "\"a b\"=c", "a=b=c", "ä=ö"] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn an_image_is_named_in_the_form_that_initramfs_programs_read() {
        let argument = digest_argument(&id(), false);
        assert_eq!(argument, format!("composefs.digest=v1-sha256-12:{}", "ab".repeat(32)));
        let long: ObjectId = "cd".repeat(64).parse().unwrap();
        let optional = digest_argument(&long, true);
        assert_eq!(optional, format!("composefs.digest=?v1-sha512-12:{}", "cd".repeat(64)));
        let old = format!("composefs=?{}", "ef".repeat(32));
        let found = digests(&[old.as_str(), "composefs.digest=v9:00", "root=x", &optional, &argument]);
        let expected = [
            (long, 1, true),
            (id(), 1, false),
            ("ef".repeat(32).parse().unwrap(), 2, true),
        ];
        let expected = expected.map(|(id, format, optional)| DigestArgument { id, format, optional });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_digest_of_the_wrong_length_or_algorithm_names_nothing() {
        for value in [
            format!("v1-sha512-12:{}", "ab".repeat(32)),
            format!("v1-sha256-12:{}", "AB".repeat(32)),
            format!("v1-sha256-12{}", "ab".repeat(32)),
            "v1-sha256-12:".into(),
            "??".into(),
        ] {
            assert_eq!(digests(&[format!("composefs.digest={value}")]), [], "{value}");
        }
    }

    #[test]
    fn values_come_in_order_and_keys_may_use_either_dash() {
        let arguments = split("console=tty0 rd.luks-x=1 console=ttyS0 console rd.luks_x=2");
        assert_eq!(values(&arguments, "console"), ["tty0", "ttyS0"]);
        assert_eq!(values(&arguments, "rd.luks-x"), ["1", "2"]);
    }

    proptest! {
        #[test]
        fn splitting_and_joining_keeps_every_argument(line in "[a-c=\" \t\n.-]{0,30}") {
            let arguments = split(&line);
            prop_assert_eq!(split(&join(&arguments)), arguments);
        }

        #[test]
        fn what_passes_the_check_stays_one_argument(arguments in prop::collection::vec("[a-c=\" .]{0,8}", 0..6)) {
            let good: Vec<String> = arguments.into_iter().filter(|a| check(a).is_ok()).collect();
            prop_assert_eq!(split(&join(&good)), good);
        }
    }
}
