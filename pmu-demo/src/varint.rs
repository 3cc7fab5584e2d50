//! Whole numbers in as few bytes as they need, seven bits in each, the lowest first.

use crate::error::{DemoError, Result};

/// Appends `value` to `out`.
pub(crate) fn put(out: &mut impl Extend<u8>, mut value: u32) {
    while value >= 0x80 {
        out.extend([value as u8 | 0x80]);
        value >>= 7;
    }
    out.extend([value as u8]);
}

/// Takes numbers and bytes off the front of what came from elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Cursor<'a> {
    /// `what` names the bytes in errors.
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn malformed(&self, problem: &'static str) -> DemoError {
        DemoError::Malformed {
            what: self.what,
            problem,
        }
    }

    pub(crate) fn number(&mut self) -> Result<u32> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let (&byte, rest) = self
                .rest
                .split_first()
                .ok_or_else(|| self.malformed("ends in a number"))?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| self.malformed("a number is too large"));
            }
        }
        Err(self.malformed("a number is too long"))
    }

    pub(crate) fn bytes(&mut self, length: u32) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length as usize)
            .ok_or_else(|| self.malformed("ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back() {
        let mut bytes = Vec::new();
        let numbers = [0, 1, 127, 128, 16_383, 16_384, u32::MAX];
        numbers.iter().for_each(|number| put(&mut bytes, *number));
        let mut cursor = Cursor::new(&bytes, "test");
        for number in numbers {
            assert_eq!(cursor.number().unwrap(), number);
        }
        assert!(cursor.is_empty());
        assert!(cursor.number().is_err());
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert!(
            Cursor::new(&[0xff, 0xff, 0xff, 0xff, 0x7f], "test")
                .number()
                .is_err()
        );
        assert!(Cursor::new(&[0x80; 9], "test").number().is_err());
        assert!(Cursor::new(&[1, 2], "test").bytes(3).is_err());
    }
}
