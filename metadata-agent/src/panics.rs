//! Panics: one in a conversation ends that conversation, and any other one the process.
#![forbid(unsafe_code)]
use std::{
    cell::Cell,
    future::poll_fn,
    panic::{self, AssertUnwindSafe, PanicHookInfo},
    pin::Pin,
    process,
    task::Poll,
};

thread_local! {
    /// Set while the thread is within a conversation.
    static IS_BOUNDED: Cell<bool> = const { Cell::new(false) };
}

/// The output of a future, or nothing if it panicked.
///
/// State that the future shares with others stays in use, so locks have to be taken whether they are poisoned or not,
/// and what the future holds has to be given back by being dropped. It stays where it is pinned: a future that takes
/// another one by value has room for it twice.
pub(crate) async fn bounded<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|context| {
        IS_BOUNDED.set(true);
        let polled = panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        IS_BOUNDED.set(false);
        match polled {
            Ok(Poll::Ready(output)) => Poll::Ready(Some(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(None),
        }
    })
    .await
}

/// Has `last_words` written before a panic is told, and the process end after it unless it is [`bounded`].
pub(crate) fn end_the_process(last_words: impl Fn() + Send + Sync + 'static) {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        last_words();
        tell(panic);
        if !IS_BOUNDED.get() {
            process::abort();
        }
    }));
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_that_of_one_future() {
        assert_eq!(bounded(pin!(async { 1 })).await, Some(1));
        let panics = async {
            tokio::task::yield_now().await;
            if IS_BOUNDED.get() {
                panic!("in a conversation");
            }
        };
        assert_eq!(bounded(pin!(panics)).await, None);
        assert!(!IS_BOUNDED.get());
        assert_eq!(bounded(pin!(async { 2 })).await, Some(2));
    }
}
