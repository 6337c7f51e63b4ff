//! Which of two versions is newer, as boot loaders see it.
//!
//! The algorithm of the UAPI group's Version Format Specification, version 1
//! (<https://uapi-group.org/specifications/specs/version_format_specification/>), as systemd-boot implements it: where
//! the two differ (whether `1~rc` is older than `1`, `1^a` than `1.a`, `1.a` than `1.0a`) the boot loader decides,
//! because it is its choice that has to be foreseen. Pure; equal means equal for sorting, not the same text (`1_`
//! equals `1`).

use std::cmp::Ordering;

/// Compares two versions; the greater one is newer.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        a = skip_ignored(a);
        b = skip_ignored(b);
        if let Some(order) = special(&mut a, &mut b, b'~') {
            return order;
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        for mark in *b"-^." {
            if let Some(order) = special(&mut a, &mut b, mark) {
                return order;
            }
        }
        let of_kind = |s: &[u8], f: fn(&u8) -> bool| s.iter().take_while(|c| f(c)).count();
        if starts_with_digit(a) || starts_with_digit(b) {
            let (left, right) = (of_kind(a, u8::is_ascii_digit), of_kind(b, u8::is_ascii_digit));
            let order = compare_numbers(&a[..left], &b[..right]);
            if order.is_ne() {
                return order;
            }
            (a, b) = (&a[left..], &b[right..]);
        } else {
            let (left, right) = (of_kind(a, u8::is_ascii_alphabetic), of_kind(b, u8::is_ascii_alphabetic));
            let order = a[..left].cmp(&b[..right]);
            if order.is_ne() {
                return order;
            }
            (a, b) = (&a[left..], &b[right..]);
        }
    }
}

/// The mark is skipped where both have it; otherwise who has it is older.
fn special(a: &mut &[u8], b: &mut &[u8], mark: u8) -> Option<Ordering> {
    match (a.first() == Some(&mark), b.first() == Some(&mark)) {
        (true, true) => {
            (*a, *b) = (&a[1..], &b[1..]);
            None
        }
        (true, false) => Some(Ordering::Less),
        (false, true) => Some(Ordering::Greater),
        (false, false) => None,
    }
}

fn skip_ignored(s: &[u8]) -> &[u8] {
    let known = |c: &u8| c.is_ascii_alphanumeric() || b"-.~^".contains(c);
    &s[s.iter().position(known).unwrap_or(s.len())..]
}

fn starts_with_digit(s: &[u8]) -> bool {
    s.first().is_some_and(u8::is_ascii_digit)
}

/// Numbers of any length; none at all is older than any.
fn compare_numbers(a: &[u8], b: &[u8]) -> Ordering {
    if a.is_empty() != b.is_empty() {
        return a.len().cmp(&b.len());
    }
    let strip = |s: &[u8]| s.iter().position(|c| *c != b'0').unwrap_or(s.len());
    let (a, b) = (&a[strip(a)..], &b[strip(b)..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The order that systemd's documentation of `systemd-analyze compare-versions` and its own test list.
    #[test]
    fn versions_sort_as_systemd_boot_sorts_them() {
        let ascending = [
            "",
            "~1",
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (i, a) in ascending.iter().enumerate().skip(2) {
            for (j, b) in ascending.iter().enumerate().skip(2) {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
        assert_eq!(compare("~1", ""), Ordering::Less);
    }

    #[test]
    fn four_hundred_versions_compare_as_systemd_analyze_says() {
        let golden = include_str!("../../testdata/versions.tsv");
        let mut seen = 0;
        for line in golden.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split('\t').collect();
            let order = match fields[1] {
                "<" => Ordering::Less,
                ">" => Ordering::Greater,
                _ => Ordering::Equal,
            };
            assert_eq!(compare(fields[0], fields[2]), order, "{line}");
            seen += 1;
        }
        assert_eq!(seen, 400);
    }

    #[test]
    fn the_specifications_examples_hold() {
        use Ordering::{Equal, Greater, Less};
        for (a, order, b) in [
            ("11", Equal, "11"),
            ("systemd-123", Equal, "systemd-123"),
            ("bar-123", Less, "foo-123"),
            ("123a", Greater, "123"),
            ("123.a", Greater, "123"),
            ("123.a", Less, "123.b"),
            ("123a", Greater, "123.a"),
            ("11α", Equal, "11β"),
            ("A", Less, "a"),
            ("", Less, "0"),
            ("0.", Greater, "0"),
            ("0.0", Greater, "0"),
            ("1_", Equal, "1"),
            ("_1", Equal, "1"),
            ("1_", Less, "1.2"),
            ("1_2_3", Greater, "1.3.3"),
            ("1+", Equal, "1"),
            ("1+2+3", Greater, "1.3.3"),
        ] {
            assert_eq!(compare(a, b), order, "{a} and {b}");
        }
    }

    #[test]
    fn kernels_of_distributions_sort_by_age() {
        for (old, new) in [
            ("6.12.9+deb13-amd64", "6.12.48+deb13-amd64"),
            ("6.1.0-9-amd64", "6.1.0-25-amd64"),
            ("5.14.0-427.el9.x86_64", "5.14.0-503.el9.x86_64"),
            ("6.9.12-200.fc40.x86_64", "6.10.3-200.fc40.x86_64"),
            ("6.1-rc8-amd64", "6.1.0-1-amd64"),
            ("9", "18446744073709551616"),
        ] {
            assert_eq!(compare(old, new), Ordering::Less, "{old} and {new}");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_an_order(a in "[0-9a-b.~^+-]{0,8}", b in "[0-9a-b.~^+-]{0,8}", c in "[0-9a-b.~^+-]{0,8}") {
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            if compare(&a, &b).is_le() && compare(&b, &c).is_le() {
                prop_assert!(compare(&a, &c).is_le());
            }
        }

        #[test]
        fn leading_zeros_do_not_matter(n in 0u64..10_000, width in 1usize..12) {
            prop_assert_eq!(compare(&format!("{n:0width$}"), &n.to_string()), Ordering::Equal);
        }
    }
}
