//! Who is inside the library: at most one thread of a source for each GPU, and one for the library
//! itself, however often the source is taken up again.

use std::{collections::BTreeSet, sync::Mutex};

use nexus_common::model::SourceId;

/// What a thread is for: a GPU by its index, or the library if there is none.
type Place = (SourceId, Option<u32>);

/// Of this process: a thread that hangs outlives the claim it was started under.
static TAKEN: Mutex<BTreeSet<Place>> = Mutex::new(BTreeSet::new());

/// The right to be the one thread there. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Seat(Place);

impl Seat {
    /// Takes the seat, unless another thread has it.
    pub(super) fn take(source: &SourceId, index: Option<u32>) -> Option<Self> {
        let place = (source.clone(), index);
        let mut taken = TAKEN.lock().ok()?;
        taken.insert(place.clone()).then(|| Self(place))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Ok(mut taken) = TAKEN.lock() {
            taken.remove(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_has_one_thread_until_that_gives_it_back() {
        let (a, b): (SourceId, SourceId) = ("seat-a".parse().unwrap(), "seat-b".parse().unwrap());
        let first = Seat::take(&a, Some(0)).unwrap();
        assert!(Seat::take(&a, Some(0)).is_none());
        let others = [Seat::take(&a, Some(1)), Seat::take(&a, None), Seat::take(&b, Some(0))];
        assert!(others.iter().all(Option::is_some));
        drop(first);
        assert!(Seat::take(&a, Some(0)).is_some());
    }
}
