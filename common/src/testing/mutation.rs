//! Guards that a test can take out of the code under test, to see that the suite notices. Only
//! builds with the feature `testing` can do this, one thread at a time.

use std::cell::Cell;

/// A guard that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A commit no longer requires that its claim stands.
    NoClaim,
    /// A commit no longer requires that positions are as they were seen.
    NoPosition,
    /// A consumer takes whatever it finds in a lane.
    NoContiguity,
    /// A block may be put below the floor of history.
    NoFloor,
}

thread_local! {
    static LEFT_OUT: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// Leaves a guard out on this thread, or none.
pub fn leave_out(mutation: Option<Mutation>) {
    LEFT_OUT.set(mutation);
}

/// Whether this guard is left out.
pub(crate) fn is(mutation: Mutation) -> bool {
    LEFT_OUT.get() == Some(mutation)
}
