//! The order in which the servers of a database are tried: random, and then round and round.

use std::hash::{BuildHasher, RandomState};

use crate::remote::{Remote, Remotes};

/// The servers, and whose turn it is.
#[derive(Debug)]
pub(super) struct Rotation {
    remotes: Vec<Remote>,
    turn: usize,
}

impl Rotation {
    /// The clients of a cluster spread over its servers, as each begins with another one.
    pub(super) fn new(remotes: &Remotes) -> Self {
        let mut remotes = remotes.as_slice().to_vec();
        let keys = RandomState::new();
        for last in (1..remotes.len()).rev() {
            remotes.swap(last, (keys.hash_one(last) % (last as u64 + 1)) as usize);
        }
        Self { remotes, turn: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.remotes.len()
    }

    /// The next one; `None` if there is none at all.
    pub(super) fn next(&mut self) -> Option<Remote> {
        let index = self.turn.checked_rem(self.remotes.len())?;
        self.turn = index + 1;
        self.remotes.get(index).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_server_has_its_turn_in_each_round() {
        let remotes: Remotes = "tcp:a:1,tcp:b:1,tcp:c:1".parse().unwrap();
        let mut firsts = BTreeSet::new();
        for _ in 0..100 {
            let mut rotation = Rotation::new(&remotes);
            let mut round =
                || (0..rotation.len()).map(|_| rotation.next().unwrap().to_string()).collect::<Vec<_>>();
            let first = round();
            assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3);
            assert_eq!(round(), first);
            firsts.insert(first[0].clone());
        }
        assert_eq!(firsts.len(), 3, "all begin with {firsts:?}");
    }
}
