//! Which files are no segments, by patterns of names: `*` stands for any characters, `?` for one.

/// What programs call files that are not complete, and their hidden ones.
pub const EXCLUDED_DEFAULT: [&str; 4] = [".*", "*.tmp", "*.partial", "*~"];

/// Whether a file's name is like the pattern.
pub(super) fn is_like(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[from] => {
                at += 1;
                from += 1;
            }
            _ => match star {
                // The star takes one character more.
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    (at, from) = (after, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::is_like;

    #[test]
    fn r01_patterns_are_what_they_say() {
        for (pattern, name, like) in [
            ("*.tmp", "a.tmp", true),
            ("*.tmp", "a.tmp2", false),
            (".*", ".hidden", true),
            (".*", "a.b", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*b*", "xxaxxabxb", true),
            ("", "", true),
            ("*", "", true),
            ("", "a", false),
        ] {
            assert_eq!(
                is_like(pattern.as_bytes(), name.as_bytes()),
                like,
                "{pattern} {name}"
            );
        }
    }
}
