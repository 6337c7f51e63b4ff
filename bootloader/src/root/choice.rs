//! Which image the kernel command line asks for. Does no I/O by itself.

use cfs_core::boot::cmdline::{self, DigestArgument};

use crate::refusal::Refusal;

/// The images that the command line names, in the order in which they are tried; `None` where it names none and says
/// nothing of composefs.
pub fn candidates(arguments: &[String]) -> Result<Option<Vec<DigestArgument>>, Refusal> {
    let named = cmdline::digests(arguments);
    if !named.is_empty() {
        return Ok(Some(named));
    }
    let said: Vec<String> = [cmdline::DIGEST_KEY, "composefs"]
        .iter()
        .flat_map(|key| {
            cmdline::values(arguments, key)
                .into_iter()
                .map(move |value| format!("{key}={value}"))
        })
        .collect();
    if said.is_empty() {
        return Ok(None);
    }
    Err(Refusal::new(
        "no kernel argument names an image",
        "composefs.digest=v1-sha256-12:<64 hex digits>, v1-sha512-12:<128 hex digits> or composefs=<hex digits>",
        said.join(" "),
    )
    .remedy("correct the options of the boot entry"))
}

/// The first candidate that `find` finds. Where it finds none of them, the refusal of the last one tells of all.
pub fn choose<T>(
    candidates: &[DigestArgument],
    mut find: impl FnMut(&DigestArgument) -> Result<Option<T>, Refusal>,
) -> Result<T, Refusal> {
    for candidate in candidates {
        if let Some(found) = find(candidate)? {
            return Ok(found);
        }
    }
    let names: Vec<String> = candidates.iter().map(|c| c.id.to_hex()).collect();
    Err(Refusal::new(
        "the repository has no image that the kernel command line names",
        format!("SYSROOT/composefs/images/{}", names.join(" or ")),
        "no such name",
    )
    .remedy(
        "check that root= names the file system of this installation; `cfs-update fsck` in another deployment says what is \
         missing",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(byte: &str) -> String {
        byte.repeat(32)
    }

    fn arguments(line: &str) -> Vec<String> {
        cmdline::split(line)
    }

    fn taken(line: &str, there: &[&str]) -> Result<String, Refusal> {
        let candidates = candidates(&arguments(line)).unwrap().unwrap();
        choose(&candidates, |c| {
            let hex = c.id.to_hex();
            Ok(there.iter().any(|byte| hex.starts_with(byte)).then_some(hex))
        })
    }

    #[test]
    fn the_first_image_that_is_there_is_taken_and_the_newer_form_comes_first() {
        let line = format!(
            "composefs={} composefs.digest=v1-sha256-12:{} composefs.digest=?v2-sha256-12:{} root=x",
            hex("aa"),
            hex("bb"),
            hex("cc")
        );
        assert_eq!(taken(&line, &["aa", "bb", "cc"]).unwrap(), hex("bb"));
        assert_eq!(taken(&line, &["aa", "cc"]).unwrap(), hex("cc"));
        assert_eq!(taken(&line, &["aa"]).unwrap(), hex("aa"));
        let refusal = taken(&line, &[]).unwrap_err().to_string();
        for byte in ["aa", "bb", "cc"] {
            assert!(refusal.contains(&hex(byte)), "{refusal}");
        }
    }

    #[test]
    fn a_refusal_of_one_that_is_there_does_not_lead_to_the_next() {
        let line = format!("composefs.digest=v1-sha256-12:{} composefs={}", hex("aa"), hex("bb"));
        let candidates = candidates(&arguments(&line)).unwrap().unwrap();
        let broken = choose(&candidates, |c| match c.id.short().as_str() {
            "aaaaaaaaaaaa" => Err(Refusal::new("broken", "", "")),
            _ => Ok(Some(())),
        });
        assert!(broken.unwrap_err().to_string().contains("broken"));
    }

    #[test]
    fn no_argument_is_another_kind_of_boot_and_a_bad_one_is_refused() {
        assert_eq!(candidates(&arguments("root=UUID=1 quiet")), Ok(None));
        assert_eq!(candidates(&arguments("composefs")), Ok(None));
        for bad in [
            "composefs.digest=v1-sha256-12:abc",
            "composefs=",
            "composefs.digest=v3-sha256-12:00",
        ] {
            let refusal = candidates(&arguments(bad)).unwrap_err().to_string();
            assert!(refusal.contains(bad), "{refusal}");
        }
    }
}
