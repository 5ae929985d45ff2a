//! Real libraries replaced under traffic: no stream fails, none goes to the
//! wrong version, and memory stays bounded.

mod world;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pilot_host::{
    Deliver, Loaders, Manager, ManagerOptions, ReloadResult, Settings, SinkHandle, Sinks, State,
};
use serde_json::Value;
use tempfile::TempDir;
use world::{Far, World, block_on, compile, wait_for};

const PORT: u16 = 4000;

struct NoSinks;

impl Sinks for NoSinks {
    fn attach(&self, sink: &str, _: &Value, _: Deliver) -> Result<Box<dyn SinkHandle>, String> {
        Err(format!("there is no sink {sink} here"))
    }
}

struct Setup {
    world: Arc<World>,
    manager: Manager,
    library: Vec<u8>,
    _compiled: TempDir,
    dir: TempDir,
}

impl Setup {
    fn new(watch: bool, generations: usize) -> Self {
        let (compiled, file) = compile("tests/plugins/version.c", "");
        let library = fs::read(file).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let plugins = dir.path().join("plugins");
        fs::create_dir(&plugins).unwrap();
        fs::write(plugins.join("libversion.so"), versioned(&library, "00000001")).unwrap();
        let world = World::new();
        let mut options = ManagerOptions::new(dir.path().join("data"));
        options.settings = Settings::default();
        options.folders = vec![plugins];
        options.watch = watch;
        options.generations = generations;
        let manager =
            Manager::start(options, Arc::new(Loaders), Arc::new(NoSinks), Arc::clone(&world) as _)
                .unwrap();
        block_on(manager.ready());
        Self { world, manager, library, _compiled: compiled, dir }
    }

    /// Puts another version in place, as `mv` does.
    fn replace(&self, version: &str) {
        let plugins = self.dir.path().join("plugins");
        let new = plugins.join(".new");
        fs::write(&new, versioned(&self.library, version)).unwrap();
        fs::rename(new, plugins.join("libversion.so")).unwrap();
    }

    fn ask(&self, far: &Far) -> u64 {
        ask(far).unwrap()
    }
}

fn ask(far: &Far) -> std::io::Result<u64> {
    far.send("?")?;
    let answer = far.recv()?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(std::str::from_utf8(&answer).unwrap().parse().unwrap())
}

fn versioned(library: &[u8], version: &str) -> Vec<u8> {
    let mut library = library.to_vec();
    let mark = b"@version:";
    let at = library.windows(mark.len()).position(|w| w == mark).unwrap() + mark.len();
    library[at..at + 8].copy_from_slice(version.as_bytes());
    library
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Two hundred as fast as it goes; `make soak` asks for six hundred, ten a second.
#[test]
fn two_hundred_reloads_under_traffic() {
    let asked = std::env::var("PILOT_RELOADS").ok().and_then(|n| n.parse().ok());
    let reloads: u64 = asked.unwrap_or(200);
    let pause = Duration::from_millis(if asked.is_some() { 100 } else { 0 });
    let setup = Setup::new(false, usize::try_from(reloads).unwrap() + 1);
    // Streams opened from now on get at least this version.
    let current = AtomicU64::new(1);
    let (served, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let long = setup.world.open(PORT);
    assert_eq!(setup.ask(&long), 1);
    let before = resident();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    let least = current.load(Ordering::Acquire);
                    let far = setup.world.open(PORT);
                    let first = ask(&far).expect("a stream failed");
                    // The one that is being swapped in may be ahead.
                    let most = current.load(Ordering::Acquire) + 1;
                    assert!((least..=most).contains(&first), "{least} <= {first} <= {most}");
                    assert_eq!(ask(&far).expect("a stream failed"), first, "it changed hands");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for version in 2..=reloads + 1 {
            std::thread::sleep(pause);
            setup.replace(&format!("{version:08}"));
            let report = block_on(setup.manager.reload());
            assert_eq!(report.plugins[0].result, ReloadResult::Reloaded, "{report:?}");
            current.store(version, Ordering::Release);
        }
        let enough = served.load(Ordering::Relaxed) + 10;
        wait_for("more streams", || served.load(Ordering::Relaxed) >= enough);
        stop.store(true, Ordering::Release);
    });
    // Older ones than the bound on generations that finish are ended.
    if reloads <= 256 {
        assert_eq!(setup.ask(&long), 1, "an open stream stays with its version");
    }
    let status = setup.manager.status("version").unwrap();
    assert_eq!((status.state, status.generation), (State::Running, reloads + 1));
    assert_eq!(status.errors, 0);
    let each = resident().saturating_sub(before) / reloads;
    eprintln!("{} streams, {each} bytes of memory a reload", served.load(Ordering::Relaxed));
    assert!(each < 400 << 10, "{each} bytes each");
}

#[test]
fn a_bad_version_changes_nothing_and_says_why() {
    let setup = Setup::new(false, 256);
    let plugins = setup.dir.path().join("plugins");
    let refused = |wanted: &str| {
        let report = block_on(setup.manager.reload());
        let done = &report.plugins[0];
        assert_eq!(done.result, ReloadResult::Kept, "{report:?}");
        assert!(done.error.as_ref().unwrap().contains(wanted), "{report:?}");
        assert_eq!(setup.ask(&setup.world.open(PORT)), 1);
        let status = setup.manager.status("version").unwrap();
        assert_eq!((status.state, status.generation), (State::Running, 1));
        assert!(status.last_reload.unwrap().error.unwrap().contains(wanted));
    };
    let put = |contents: &[u8]| {
        fs::write(plugins.join(".new"), contents).unwrap();
        fs::rename(plugins.join(".new"), plugins.join("libversion.so")).unwrap();
    };
    setup.replace("X0000000");
    refused("its self-test failed: this version is known to be bad");
    put(&setup.library[..setup.library.len() / 2]);
    refused("is cut");
    put(b"not a library");
    refused("libversion.so");
    put(b"");
    refused("libversion.so");
    setup.replace("00000002");
    let report = block_on(setup.manager.reload());
    assert_eq!(report.plugins[0].result, ReloadResult::Reloaded, "{report:?}");
    assert_eq!(setup.ask(&setup.world.open(PORT)), 2);
    let failed = setup.world.events.lock().unwrap();
    let failed = failed.iter().filter(|(name, _)| name == "plugin.reload_failed").count();
    assert_eq!(failed, 4);
}

#[test]
fn a_watched_library_is_replaced_by_itself_once() {
    let setup = Setup::new(true, 256);
    for version in 2..6u64 {
        setup.replace(&format!("{version:08}"));
        wait_for("the new version", || setup.ask(&setup.world.open(PORT)) == version);
        assert_eq!(setup.manager.status("version").unwrap().generation, version);
    }
    fs::remove_file(setup.dir.path().join("plugins/libversion.so")).unwrap();
    wait_for("the port is free", || setup.world.ports.lock().unwrap().is_empty());
}

#[test]
fn libraries_are_capped() {
    let setup = Setup::new(false, 3);
    for version in 2..=3 {
        setup.replace(&format!("{version:08}"));
        let report = block_on(setup.manager.reload());
        assert_eq!(report.plugins[0].result, ReloadResult::Reloaded, "{report:?}");
    }
    setup.replace("00000004");
    let report = block_on(setup.manager.reload());
    assert_eq!(report.plugins[0].result, ReloadResult::Kept, "{report:?}");
    let error = report.plugins[0].error.as_ref().unwrap();
    assert!(error.contains("restart"), "{error}");
    assert_eq!(setup.ask(&setup.world.open(PORT)), 3);
    let copies = fs::read_dir(setup.dir.path().join("data/plugin-cache")).unwrap().count();
    assert!(copies <= 3, "{copies}");
}

#[test]
fn the_file_is_copied_before_it_is_used() {
    let setup = Setup::new(false, 256);
    let file = setup.dir.path().join("plugins/libversion.so");
    // Overwritten in place, which would kill a process that has it mapped.
    fs::write(&file, vec![0; setup.library.len()]).unwrap();
    assert_eq!(setup.ask(&setup.world.open(PORT)), 1);
    assert!(Path::new(&file).exists());
}
