//! A MAC address, as frames and maps have it.

/// A MAC address in one 64-bit word, so that it is read and written whole: the six bytes, then two zero bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(transparent)]
pub struct Mac(u64);

impl Mac {
    /// No station's.
    pub const NONE: Self = Self(0);

    /// From the bytes as they stand in a frame.
    #[inline(always)]
    pub const fn new(bytes: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = bytes;
        Self(u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// The bytes as they stand in a frame.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.0.to_ne_bytes();
        [a, b, c, d, e, f]
    }
}

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is no MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidMac;

impl core::str::FromStr for Mac {
    type Err = InvalidMac;

    /// Six numbers of two hexadecimal digits, with colons.
    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let mut bytes = [0; 6];
        let mut words = text.split(':');
        for byte in &mut bytes {
            let word =
                words.next().filter(|word| word.len() == 2 && !word.starts_with('+')).ok_or(InvalidMac)?;
            *byte = u8::from_str_radix(word, 16).map_err(|_| InvalidMac)?;
        }
        if words.next().is_some() { Err(InvalidMac) } else { Ok(Self::new(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_round_trip() {
        let bytes = [0xfa, 0x16, 0x3e, 1, 2, 3];
        assert_eq!(Mac::new(bytes).bytes(), bytes);
        assert_eq!("FA:16:3e:01:02:03".parse(), Ok(Mac::new(bytes)));
        assert_eq!(Mac::new(bytes).to_string(), "fa:16:3e:01:02:03");
        for text in [
            "",
            "unknown",
            "router",
            "fa:16:3e:01:02",
            "fa:16:3e:01:02:03:04",
            "fa:16:3e:1:2:3",
            "+a:16:3e:01:02:03",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(InvalidMac), "{text}");
        }
    }
}
