//! Atomics and `Notify`, or their stand-ins under loom.
//!
//! Under `--cfg netwatch_loom` the model checker needs its own types. All files of `buffer` that are model-checked
//! import them from here.

#[cfg(netwatch_loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
#[cfg(not(netwatch_loom))]
pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
#[cfg(not(netwatch_loom))]
pub(super) use tokio::sync::Notify;
#[cfg(not(netwatch_loom))]
pub(super) use tokio::sync::futures::Notified;

#[cfg(netwatch_loom)]
pub(super) use self::notify::{Notified, Notify};

/// A stand-in for `tokio::sync::Notify`, which does not run under loom. It guarantees less: a waiter registers when it
/// is enabled or polled, not when it is created.
#[cfg(netwatch_loom)]
mod notify {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use loom::sync::Mutex;

    #[derive(Debug)]
    pub(in super::super) struct Notify(Mutex<Registered>);

    /// The registered waiters, by number.
    #[derive(Debug, Default)]
    struct Registered {
        next: usize,
        wakers: Vec<(usize, Option<Waker>)>,
    }

    pub(in super::super) struct Notified<'a> {
        notify: &'a Notify,
        number: Option<usize>,
    }

    impl Notify {
        pub(in super::super) fn new() -> Self {
            Self(Mutex::default())
        }

        pub(in super::super) fn notified(&self) -> Notified<'_> {
            Notified { notify: self, number: None }
        }

        pub(in super::super) fn notify_waiters(&self) {
            let registered = std::mem::take(&mut self.0.lock().unwrap().wakers);
            registered.into_iter().filter_map(|(_, waker)| waker).for_each(Waker::wake);
        }
    }

    impl Notified<'_> {
        pub(in super::super) fn enable(self: Pin<&mut Self>) -> bool {
            self.poll_notified(None).is_ready()
        }

        fn poll_notified(mut self: Pin<&mut Self>, waker: Option<&Waker>) -> Poll<()> {
            let mut registered = self.notify.0.lock().unwrap();
            let Some(number) = self.number else {
                let number = registered.next;
                registered.next += 1;
                registered.wakers.push((number, waker.cloned()));
                drop(registered);
                self.number = Some(number);
                return Poll::Pending;
            };
            match registered.wakers.iter_mut().find(|(other, _)| *other == number) {
                None => Poll::Ready(()),
                Some((_, registered)) => {
                    *registered = waker.cloned();
                    Poll::Pending
                }
            }
        }
    }

    impl Future for Notified<'_> {
        type Output = ();

        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            self.poll_notified(Some(context.waker()))
        }
    }

    impl Drop for Notified<'_> {
        fn drop(&mut self) {
            if self.number.is_some() {
                self.notify.0.lock().unwrap().wakers.retain(|(number, _)| Some(*number) != self.number);
            }
        }
    }
}
