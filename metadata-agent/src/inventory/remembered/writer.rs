//! The thread that writes identities: a disk that takes its time, or a folder that is not as it should be, holds up nobody.
use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::warn;

use super::FILE;
use crate::files::Folder;

/// Delay after a failed write before the next attempt.
pub(super) const AGAIN: Duration = Duration::from_secs(60);
/// Timeout of a write under way when the agent ends.
const AT_THE_END: Duration = Duration::from_secs(2);

/// Writes the latest contents it was given. Dropped, it waits a little for that.
#[derive(Debug)]
pub(super) struct Writer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Contents that wait to be written.
    contents: Option<Vec<u8>>,
    /// Somebody is writing.
    writing: bool,
    /// Nothing follows.
    ends: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    pub(super) fn start(folder: &Path) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (theirs, folder) = (shared.clone(), folder.to_path_buf());
        thread::Builder::new().name("identities".to_owned()).spawn(move || run(&theirs, &folder))?;
        Ok(Self(shared))
    }

    /// These take the place of what is not written yet.
    pub(super) fn write(&self, contents: Vec<u8>) {
        self.0.lock().contents = Some(contents);
        self.0.changed.notify_all();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ends = true;
        self.0.changed.notify_all();
        let busy = |state: &mut State| state.contents.is_some() || state.writing;
        drop(self.0.changed.wait_timeout_while(state, AT_THE_END, busy));
    }
}

fn run(shared: &Shared, folder: &Path) {
    let mut state = shared.lock();
    loop {
        match state.contents.take() {
            None if state.ends => return,
            None => state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(contents) => {
                state.writing = true;
                drop(state);
                let result = Folder::create(folder).and_then(|folder| folder.replace(FILE, &contents));
                state = shared.lock();
                state.writing = false;
                if let Err(error) = result {
                    warn!(path = %folder.join(FILE).display(), %error, "cannot remember identities; set [DEFAULT] \
                        state_path to a folder that the agent can write to");
                    if !state.ends {
                        let waits = |state: &mut State| state.contents.is_none() && !state.ends;
                        let waited = shared.changed.wait_timeout_while(state, AGAIN, waits);
                        state = waited.unwrap_or_else(PoisonError::into_inner).0;
                        // Later contents go first.
                        state.contents.get_or_insert(contents);
                    }
                }
                shared.changed.notify_all();
            }
        }
    }
}
