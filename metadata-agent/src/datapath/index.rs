//! Hands out port indexes and their generations. Pure.
#![forbid(unsafe_code)]
use std::collections::VecDeque;

use metadata_ebpf::address::MAX_PORTS;

/// A port's place in the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Assignment {
    /// Index into `SOURCES`.
    pub index: u32,
    /// Generation, 1 to 255.
    pub generation: u8,
}

/// The free indexes, the longest free first, and the last generation of each.
#[derive(Debug)]
pub struct Indexes {
    free: VecDeque<u32>,
    generations: Vec<u8>,
}

impl Indexes {
    /// From the last generation of every index (0: never used) and the indexes in use.
    pub fn new(generations: Vec<u8>, used: impl Iterator<Item = u32>) -> Self {
        let mut is_used = vec![false; generations.len()];
        for index in used {
            if let Some(entry) = is_used.get_mut(index as usize) {
                *entry = true;
            }
        }
        let free = (0..MAX_PORTS).zip(is_used).filter(|(_, used)| !used).map(|(index, _)| index).collect();
        Self { free, generations }
    }

    /// The index that has been free the longest, under its next generation; `None` when all are in use.
    pub fn take(&mut self) -> Option<Assignment> {
        let index = self.free.pop_front()?;
        let last = self.generations.get_mut(index as usize)?;
        // Zero stands for "never used" and is skipped.
        *last = last.checked_add(1).unwrap_or(1);
        Some(Assignment { index, generation: *last })
    }

    /// The index that has been free the shortest, for who keeps it for ever; ports leave one to it.
    pub fn take_last(&mut self) -> Option<Assignment> {
        let last = self.free.pop_back()?;
        self.free.push_front(last);
        self.take()
    }

    /// Tells whether there is another one to take.
    pub fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Gives an index back.
    pub fn give_back(&mut self, assignment: Assignment) {
        self.free.push_back(assignment.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_comes_back_last_and_under_another_generation() {
        let mut indexes = Indexes::new(vec![0; MAX_PORTS as usize], [0, 2].into_iter());
        let first = indexes.take().unwrap();
        assert_eq!(first, Assignment { index: 1, generation: 1 });
        indexes.give_back(first);
        let mut seen = Vec::new();
        while let Some(assignment) = indexes.take() {
            seen.push(assignment);
        }
        assert_eq!(seen.len(), MAX_PORTS as usize - 2);
        assert!(!indexes.has_free());
        assert_eq!(seen.last(), Some(&Assignment { index: 1, generation: 2 }));
    }

    #[test]
    fn the_last_one_is_nobody_elses() {
        let mut indexes = Indexes::new(vec![0; MAX_PORTS as usize], [].into_iter());
        let last = indexes.take_last().unwrap();
        assert_eq!(last, Assignment { index: MAX_PORTS - 1, generation: 1 });
        assert_eq!(std::iter::from_fn(|| indexes.take()).count(), MAX_PORTS as usize - 1);
        assert_eq!(indexes.take_last(), None);
    }

    #[test]
    fn generations_wrap_around_zero() {
        let mut generations = vec![0; MAX_PORTS as usize];
        generations[0] = 255;
        assert_eq!(
            Indexes::new(generations, [].into_iter()).take(),
            Some(Assignment { index: 0, generation: 1 })
        );
    }
}
