//! The file: rotation, crashes, full disks, other writers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use pilot_plugin::json::{self, json};
use pilot_plugin::{Batch, Delivery};
use tempfile::TempDir;

use crate::config::{Config, Fsync};
use crate::file::EventFile;
use crate::write;

fn config(value: json::Value) -> Config {
    json::from_value(value).unwrap()
}

fn event(number: u64) -> String {
    format!("{{\"event\":\"conn.fin\",\"node_id\":2,\"event_id\":{}}}", 100_000 + number)
}

/// Bytes of a line.
const LINE: u64 = 51;

/// Delivers events of these numbers.
fn deliver(file: &mut EventFile, numbers: std::ops::RangeInclusive<u64>) -> Result<(), String> {
    let events: Vec<String> = numbers.map(event).collect();
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    file.append(&events, crate::format::encode).map_err(|failure| failure.reason)
}

/// Numbers of the events in a file, each a whole line.
fn numbers(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    let number =
        |line: &str| line[line.len() - 7..line.len() - 1].parse::<u64>().unwrap() - 100_000;
    text.lines().map(number).collect()
}

struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self, more: json::Value) -> EventFile {
        let mut value = json!({ "path": self.path("events") });
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        EventFile::new(&config(value))
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn events_are_lines_of_a_private_file() {
    assert_eq!(event(1).len() as u64 + 1, LINE);
    let place = Place::new();
    for fsync in ["batch", "never"] {
        let mut file = place.open(json!({ "fsync": fsync }));
        file.probe().unwrap();
        deliver(&mut file, 1..=3).unwrap();
        deliver(&mut file, 4..=4).unwrap();
        assert_eq!(numbers(&place.path("events")), [1, 2, 3, 4]);
        let mode = fs::metadata(place.path("events")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_file(place.path("events")).unwrap();
    }
}

#[test]
fn a_batch_is_acknowledged_as_the_host_sends_it() {
    let place = Place::new();
    let file = Mutex::new(place.open(json!({})));
    let batch = Batch { sink: "file".to_owned(), lines: format!("{}\n{}\n", event(1), event(2)) };
    assert_eq!(write(&file, &batch), Delivery::Ack);
    assert_eq!(fs::read_to_string(place.path("events")).unwrap(), batch.lines);
}

#[test]
fn files_are_rotated_before_they_are_too_long() {
    let place = Place::new();
    let mut file = place.open(json!({ "max-bytes": 10 * LINE, "keep": 3 }));
    // In one batch, and in small ones.
    deliver(&mut file, 1..=25).unwrap();
    assert_eq!(place.names(), ["events", "events.1", "events.2"]);
    for first in (26..=58).step_by(3) {
        deliver(&mut file, first..=first + 2).unwrap();
    }
    assert_eq!(place.names(), ["events", "events.1", "events.2", "events.3"]);
    let mut all = Vec::new();
    for name in ["events.3", "events.2", "events.1", "events"] {
        let here = numbers(&place.path(name));
        assert!(here.len() <= 10);
        all.extend(here);
    }
    assert!(all.iter().copied().eq(21..=58), "{all:?}");
}

#[test]
fn an_event_longer_than_a_file_has_one_for_itself() {
    let place = Place::new();
    let mut file = place.open(json!({ "max-bytes": 10, "keep": 9 }));
    deliver(&mut file, 1..=3).unwrap();
    assert_eq!(numbers(&place.path("events")), [3]);
    assert_eq!(numbers(&place.path("events.1")), [2]);
    assert_eq!(numbers(&place.path("events.2")), [1]);
    assert_eq!(place.names().len(), 3);
}

#[test]
fn no_bound_means_one_file() {
    let place = Place::new();
    let mut file = place.open(json!({ "max-bytes": 0 }));
    deliver(&mut file, 1..=5000).unwrap();
    assert_eq!(place.names(), ["events"]);
    assert_eq!(numbers(&place.path("events")).len(), 5000);
}

#[test]
fn a_crash_at_any_byte_leaves_whole_lines() {
    let place = Place::new();
    let path = place.path("events");
    let whole = format!("{}\n{}\n", event(1), event(2));
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        deliver(&mut place.open(json!({})), 3..=3).unwrap();
        // A line without only its end is whole; half a line comes again.
        let line = LINE as usize;
        let left = if cut % line == line - 1 { cut / line + 1 } else { cut / line } as u64;
        let expected: Vec<u64> = (1..=left).chain([3]).collect();
        assert_eq!(numbers(&path), expected, "{cut}");
    }
}

#[test]
fn a_long_half_line_is_cut_off_and_text_of_others_is_kept() {
    let place = Place::new();
    let path = place.path("events");
    let half = format!("{}\n{{\"event\":\"{}", event(1), "x".repeat(300_000));
    fs::write(&path, half).unwrap();
    deliver(&mut place.open(json!({})), 2..=2).unwrap();
    assert_eq!(numbers(&path), [1, 2]);

    fs::write(&path, "notes of mine").unwrap();
    deliver(&mut place.open(json!({})), 2..=2).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("notes of mine\n{}\n", event(2)));
}

#[test]
fn a_file_moved_away_or_truncated_is_followed() {
    let place = Place::new();
    let path = place.path("events");
    let mut file = place.open(json!({}));
    deliver(&mut file, 1..=2).unwrap();
    fs::rename(&path, place.path("taken")).unwrap();
    deliver(&mut file, 3..=3).unwrap();
    assert_eq!(numbers(&place.path("taken")), [1, 2]);
    assert_eq!(numbers(&path), [3]);
    fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    deliver(&mut file, 4..=4).unwrap();
    assert_eq!(numbers(&path), [4]);
    fs::remove_file(&path).unwrap();
    deliver(&mut file, 5..=5).unwrap();
    assert_eq!(numbers(&path), [5]);
}

#[test]
fn two_generations_do_not_write_into_each_others_lines() {
    let place = Place::new();
    let (mut old, mut new) = (
        place.open(json!({ "max-bytes": 4 * LINE, "keep": 100 })),
        place.open(json!({ "max-bytes": 4 * LINE, "keep": 100 })),
    );
    for number in 1..=40 {
        let file = if number % 3 == 0 { &mut new } else { &mut old };
        deliver(file, number..=number).unwrap();
    }
    let mut all: Vec<u64> = Vec::new();
    for number in (1..=9).rev() {
        all.extend(numbers(&place.path(&format!("events.{number}"))));
    }
    all.extend(numbers(&place.path("events")));
    assert!(all.iter().copied().eq(1..=40), "{all:?}");

    // Somebody else holds it.
    let other = fs::File::open(place.path("events")).unwrap();
    other.lock().unwrap();
    let why = deliver(&mut old, 41..=41).unwrap_err();
    assert!(why.contains("another process") && why.contains("events"), "{why}");
    other.unlock().unwrap();
    deliver(&mut old, 41..=41).unwrap();
}

#[test]
fn a_path_that_cannot_be_written_is_named() {
    let place = Place::new();
    let mut missing =
        EventFile::new(&config(json!({ "path": place.path("none/events"), "fsync": "never" })));
    let why = missing.probe().unwrap_err();
    assert!(why.contains("cannot open") && why.contains("none/events"), "{why}");
    let mut folder = EventFile::new(&config(json!({ "path": place.folder.path() })));
    assert!(folder.probe().is_err());
    // A device that is always full.
    let mut full = EventFile::new(&config(json!({ "path": "/dev/full" })));
    let why = full.probe().unwrap_err();
    assert!(why.contains("/dev/full") && why.contains("not a regular file"), "{why}");
}

#[test]
fn what_fails_in_the_middle_is_counted_and_comes_again() {
    let place = Place::new();
    // A folder where the second old file would go: the second rotation fails.
    fs::create_dir_all(place.path("events.2/in the way")).unwrap();
    let mut file = place.open(json!({ "max-bytes": 10 * LINE, "keep": 2 }));
    let events: Vec<String> = (1..=25).map(event).collect();
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    let failure = file.append(&events, crate::format::encode).unwrap_err();
    assert_eq!(failure.accepted, 20);
    assert!(failure.reason.contains("cannot rotate"), "{}", failure.reason);
    assert_eq!(numbers(&place.path("events.1")).len(), 10);

    fs::remove_dir_all(place.path("events.2")).unwrap();
    file.append(&events[failure.accepted..], crate::format::encode).unwrap();
    let mut all = Vec::new();
    for name in ["events.2", "events.1", "events"] {
        all.extend(numbers(&place.path(name)));
    }
    assert!(all.iter().copied().eq(1..=25), "{all:?}");
}

/// In a process whose files may have 4 KiB: the last write there is cut short
/// and fails, as on a full disk.
#[test]
fn a_full_disk_leaves_whole_lines_and_is_named() {
    const PATH: &str = "SINK_FILE_TEST_PATH";
    const NAME: &str = "tests::a_full_disk_leaves_whole_lines_and_is_named";
    if let Ok(path) = std::env::var(PATH) {
        let mut file = EventFile::new(&config(json!({ "path": path })));
        deliver(&mut file, 1..=50).unwrap();
        let why = deliver(&mut file, 51..=100).unwrap_err();
        let path = Path::new(&path);
        assert!(why.contains("cannot write to") && why.contains(&path.display().to_string()));
        assert_eq!(fs::metadata(path).unwrap().len(), 50 * LINE);
        return;
    }
    let place = Place::new();
    let path = place.path("events");
    let status = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg(NAME)
        .env(PATH, &path)
        // The limit holds for these as well, when they are files.
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(numbers(&path).into_iter().eq(1..=50));
    // There is room again.
    deliver(&mut place.open(json!({})), 51..=100).unwrap();
    assert!(numbers(&path).into_iter().eq(1..=100));
}

#[test]
fn configurations_are_checked() {
    let written = config(json!({ "path": "/var/log/events" }));
    assert_eq!((written.max_bytes, written.keep, written.fsync), (64 << 20, 5, Fsync::Batch));
    written.check().unwrap();
    for (value, key) in [
        (json!({ "path": "/" }), "`path`"),
        (json!({ "path": "e", "keep": 0 }), "`keep`"),
        (json!({ "path": "e", "keep": 1001 }), "`keep`"),
    ] {
        let why = config(value).check().unwrap_err();
        assert!(why.contains(key), "{why}");
    }
    for bad in [json!({}), json!({ "path": "e", "fsync": "often" }), json!({ "paths": "e" })] {
        assert!(json::from_value::<Config>(bad.clone()).is_err(), "{bad}");
    }
}
