//! 802.1Q tags in frames as a tap's descriptor carries them: virtio's header, then the frame with its tag in it.

use std::ops::Range;

/// `struct virtio_net_hdr` (linux/virtio_net.h); its numbers are in the machine's order.
const HEADER: usize = 10;
const FLAGS: usize = 0;
const SEGMENTATION: usize = 1;
const HEADERS_LENGTH: Range<usize> = 2..4;
const CHECKSUM_START: Range<usize> = 6..8;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`
const NEEDS_CHECKSUM: u8 = 1;

/// A tag stands behind the two MACs.
const TAG: usize = HEADER + 12;
const TAG_LENGTH: u16 = 4;
const ETHERTYPE: [u8; 2] = [0x81, 0x00];

/// The frame with a tag, or as it is for VLAN 0.
pub(crate) fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    if vlan == 0 || frame.len() < TAG {
        return frame.to_vec();
    }
    let (front, rest) = frame.split_at(TAG);
    let mut tagged = [front, &ETHERTYPE, &vlan.to_be_bytes(), rest].concat();
    shift(&mut tagged, |offset| offset + TAG_LENGTH);
    tagged
}

/// The frame's VLAN, 0 for none, and the frame without the tag.
pub(crate) fn untagged(frame: &[u8]) -> (u16, Vec<u8>) {
    let Some((&[a, b, high, low], rest)) = frame.get(TAG..).and_then(<[u8]>::split_first_chunk) else {
        return (0, frame.to_vec());
    };
    if [a, b] != ETHERTYPE {
        return (0, frame.to_vec());
    }
    let mut untagged = [&frame[..TAG], rest].concat();
    shift(&mut untagged, |offset| offset.saturating_sub(TAG_LENGTH));
    (u16::from_be_bytes([high, low]) & 0xfff, untagged)
}

/// Corrects the offsets in virtio's header, of which an unfinished checksum and a large segment have one each.
fn shift(frame: &mut [u8], shifted: impl Fn(u16) -> u16) {
    for (is_used, at) in
        [(frame[SEGMENTATION] != 0, HEADERS_LENGTH), (frame[FLAGS] & NEEDS_CHECKSUM != 0, CHECKSUM_START)]
    {
        if is_used {
            let offset = u16::from_ne_bytes([frame[at.start], frame[at.start + 1]]);
            frame[at].copy_from_slice(&shifted(offset).to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_put_on_and_taken_off() {
        let mut frame = vec![NEEDS_CHECKSUM, 1, 0, 0, 0, 0, 0, 0, 16, 0];
        frame[HEADERS_LENGTH].copy_from_slice(&54_u16.to_ne_bytes());
        frame[CHECKSUM_START].copy_from_slice(&34_u16.to_ne_bytes());
        frame.extend(0..60);
        let tagged = tagged(&frame, 101);
        assert_eq!(tagged[HEADERS_LENGTH], 58_u16.to_ne_bytes());
        assert_eq!(tagged[CHECKSUM_START], 38_u16.to_ne_bytes());
        assert_eq!(tagged[20..28], [10, 11, 0x81, 0, 0, 101, 12, 13]);
        assert_eq!(untagged(&tagged), (101, frame.clone()));
        assert_eq!(untagged(&frame), (0, frame));
    }
}
