//! Threads that act with a user's rights. Each serves one call and ends, so that none is left with rights that are not
//! its own, and none of a pool is in a snapshot.

#![expect(unsafe_code, reason = "the C library changes ids of all threads; of one it is a plain system call")]

use super::{FileError, Files};
use crate::user::{self, Names, User};
use nix::{
    errno::Errno,
    unistd::{Gid, Uid, setfsgid, setfsuid},
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// The deepest recursion is the standard library's removal of a tree.
const STACK_BYTES: usize = 2 << 20;

/// Whom a thread acts for. It does not leave its thread.
#[derive(Debug)]
pub struct Actor {
    /// The user.
    pub user: User,
    /// All names, for paths and entries.
    pub names: Names,
    gone: Arc<AtomicBool>,
    /// The rights are the thread's.
    _not_send: std::marker::PhantomData<*const ()>,
}

/// Says to the thread that nobody waits any more.
struct Caller(Arc<AtomicBool>);

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Actor {
    /// Fails when the caller has gone: for long work, now and then.
    pub fn go_on(&self) -> Result<(), FileError> {
        if self.gone.load(Ordering::Relaxed) { Err(FileError::BrokenOff) } else { Ok(()) }
    }

    /// Does one thing with envd's own rights, such as giving a file to another user.
    pub fn as_root<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Back(Uid);
        impl Drop for Back {
            fn drop(&mut self) {
                setfsuid(self.0);
            }
        }
        let _back = Back(Uid::from_raw(self.user.uid));
        setfsuid(Uid::from_raw(0));
        work()
    }

    /// Becomes the user, for good.
    fn assume(name: &str, gone: Arc<AtomicBool>) -> Result<Self, FileError> {
        let names = Names::read()?;
        let name = if name.is_empty() { "root" } else { name };
        let user = names.user(name).ok_or_else(|| user::UserError::Unknown(name.to_owned()))?;
        if user.uid != 0 {
            become_user(&user).map_err(FileError::Thread)?;
        }
        Ok(Self { user, names, gone, _not_send: std::marker::PhantomData })
    }
}

fn become_user(user: &User) -> io::Result<()> {
    // SAFETY: the list lives through the call, which reads `len` ids from it. The plain system call changes this thread
    // alone.
    let set = unsafe { libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) };
    Errno::result(set)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setfsgid(gid);
    // With it go the capabilities over files.
    setfsuid(uid);
    // They answer with what was before and with no error; a second call tells.
    if setfsgid(gid) != gid || setfsuid(uid) != uid {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

impl Files {
    /// Does `work` for a user (empty: root) and answers with what it gives. When this is dropped, long work is broken
    /// off.
    pub async fn run<T: Send + 'static>(
        &self,
        user: String,
        work: impl FnOnce(&Actor) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let (reply, answer) = oneshot::channel();
        let gone = Arc::new(AtomicBool::new(false));
        let _caller = Caller(Arc::clone(&gone));
        start(self.place()?, move || {
            // Its caller may have gone.
            let _ = reply.send(Actor::assume(&user, gone).and_then(|actor| work(&actor)));
        })?;
        answer.await.map_err(|_| FileError::Thread(io::ErrorKind::BrokenPipe.into()))?
    }

    /// Does `work`, which gives its answer in parts: at most `ahead` wait for their reader. An error of its own is the
    /// last part.
    pub fn stream<T: Send + 'static>(
        &self,
        user: String,
        ahead: usize,
        work: impl FnOnce(&Actor, &Parts<T>) -> Result<(), FileError> + Send + 'static,
    ) -> Result<mpsc::Receiver<Result<T, FileError>>, FileError> {
        let (parts, receiver) = mpsc::channel(ahead);
        let parts = Parts(parts);
        start(self.place()?, move || {
            let worked = Actor::assume(&user, Arc::default()).and_then(|actor| work(&actor, &parts));
            if let Err(error) = worked {
                // Its reader may have gone.
                let _ = parts.0.blocking_send(Err(error));
            }
        })?;
        Ok(receiver)
    }

    /// Does `work` that lasts, and is not counted with the others.
    pub fn watch(
        &self,
        user: String,
        work: impl FnOnce(Result<Actor, FileError>) + Send + 'static,
    ) -> Result<(), FileError> {
        let place = Arc::clone(&self.watches).try_acquire_owned();
        let place = place.map_err(|_| FileError::TooMany("too many watches"))?;
        start(place, move || work(Actor::assume(&user, Arc::default())))
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, FileError> {
        let place = Arc::clone(&self.calls).try_acquire_owned();
        place.map_err(|_| FileError::TooMany("too many calls on files at the same time"))
    }
}

/// Where the parts of an answer go.
#[derive(Debug)]
pub struct Parts<T>(mpsc::Sender<Result<T, FileError>>);

impl<T> Parts<T> {
    /// Passes a part on, as soon as there is room.
    pub fn send(&self, part: T) -> Result<(), FileError> {
        self.0.blocking_send(Ok(part)).map_err(|_| FileError::BrokenOff)
    }
}

fn start(place: OwnedSemaphorePermit, work: impl FnOnce() + Send + 'static) -> Result<(), FileError> {
    let thread = thread::Builder::new().name("files".to_owned()).stack_size(STACK_BYTES);
    let started = thread.spawn(move || {
        work();
        drop(place);
    });
    started.map(drop).map_err(FileError::Thread)
}
