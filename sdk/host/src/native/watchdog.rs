//! One thread for all instances: it sees callbacks that do not come back and
//! questions that are not answered.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::instance::{Failure, Incident};

/// How often it looks. A callback counts as running from the first look that
/// sees it.
const INTERVAL: Duration = Duration::from_millis(50);

static WATCHED: OnceLock<Mutex<Vec<Weak<Shared>>>> = OnceLock::new();

/// Watches an instance until it has ended.
///
/// # Errors
/// When the thread cannot be made.
pub(super) fn watch(shared: &Arc<Shared>) -> std::io::Result<()> {
    let mut failed = None;
    let watched = WATCHED.get_or_init(|| {
        let thread = std::thread::Builder::new().name("plugin-watchdog".to_owned()).spawn(run);
        failed = thread.err();
        Mutex::default()
    });
    watched.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(shared));
    failed.map_or(Ok(()), Err)
}

fn run() {
    loop {
        std::thread::sleep(INTERVAL);
        let Some(watched) = WATCHED.get() else { continue };
        let living: Vec<Arc<Shared>> = {
            let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
            watched.retain(|shared| shared.upgrade().is_some_and(|shared| !shared.has_ended()));
            watched.iter().filter_map(Weak::upgrade).collect()
        };
        let now = Instant::now();
        for shared in living {
            look(&shared, now);
        }
    }
}

fn look(shared: &Shared, now: Instant) {
    shared.expire_questions(now);
    let limits = &shared.context.limits;
    let Some((callback, since)) = shared.running(now) else { return };
    // Starting has a limit of its own, which who starts it watches.
    let starting = matches!(callback, "start" | "self_test");
    if starting || now.saturating_duration_since(since) < limits.callback || !shared.abandon() {
        return;
    }
    let text = format!("{callback} has not come back for {} ms", limits.callback.as_millis());
    shared.note_error(&text);
    shared.end(&format!("plugin {} hangs", shared.context.name), &Failure::Crashed(text));
    shared.tell(Incident::Hung { callback });
}
