//! The stores of plugins.

use pilot_host::{STORE_MAX_VALUE, STORE_QUOTA, StoreError, Stores};

#[test]
fn values_outlive_the_process_and_are_apart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugins.db");
    let stores = Stores::open(&file).unwrap();
    let (a, b) = (stores.of("a"), stores.of("b"));
    a.put("x", b"1").unwrap();
    a.put("names/q", b"2").unwrap();
    a.put("names/%", b"3").unwrap();
    b.put("x", b"4").unwrap();
    a.put("x", b"5").unwrap();
    drop((a, b, stores));
    let stores = Stores::open(&file).unwrap();
    assert_eq!(stores.moved_aside(), None);
    let (a, b) = (stores.of("a"), stores.of("b"));
    assert_eq!(a.get("x").unwrap().as_deref(), Some(b"5".as_slice()));
    assert_eq!(b.get("x").unwrap().as_deref(), Some(b"4".as_slice()));
    assert_eq!(a.keys("names/").unwrap(), ["names/%", "names/q"]);
    assert_eq!(a.keys("").unwrap(), ["names/%", "names/q", "x"]);
    assert_eq!(a.keys("%").unwrap(), [""; 0]);
    a.delete("x").unwrap();
    a.delete("x").unwrap();
    assert_eq!(a.get("x").unwrap(), None);
    assert_eq!(b.keys("").unwrap(), ["x"]);
}

#[test]
fn keys_values_and_the_whole_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugins.db");
    let stores = Stores::open(&file).unwrap();
    let a = stores.of("a");
    assert_eq!(a.put("", b""), Err(StoreError::Key(0)));
    assert_eq!(a.get(&"k".repeat(257)), Err(StoreError::Key(257)));
    a.put(&"k".repeat(256), b"").unwrap();
    let big = vec![7; STORE_MAX_VALUE];
    let error = a.put("big", &vec![7; STORE_MAX_VALUE + 1]).unwrap_err();
    assert!(matches!(error, StoreError::Quota { .. }), "{error}");
    let fitting = (0..100).take_while(|n| a.put(&format!("big{n}"), &big).is_ok()).count();
    assert_eq!(fitting as u64, STORE_QUOTA / STORE_MAX_VALUE as u64 - 1);
    let error = a.put("more", &big).unwrap_err().to_string();
    assert!(error.contains("store of a") && error.contains("16777216"), "{error}");
    // Others are not hurt by it, and what is given back can be used again.
    stores.of("b").put("x", &big).unwrap();
    a.put("big0", &big).unwrap();
    a.put("big0", b"small").unwrap();
    a.put("more", &big[..1000]).unwrap();
    // The same is true after a start.
    drop((a, stores));
    let stores = Stores::open(&file).unwrap();
    let a = stores.of("a");
    a.put("big0", &big).unwrap();
    assert!(a.put("more", &big).is_err());
    a.delete("big1").unwrap();
    a.put("more", &big).unwrap();
}

#[test]
fn a_damaged_file_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plugins.db");
    std::fs::write(&file, vec![b'x'; 8192]).unwrap();
    let stores = Stores::open(&file).unwrap();
    let aside = stores.moved_aside().unwrap().to_owned();
    assert!(aside.display().to_string().contains("plugins.db.damaged-"));
    assert_eq!(std::fs::read(aside).unwrap(), vec![b'x'; 8192]);
    let a = stores.of("a");
    a.put("x", b"1").unwrap();
    assert_eq!(a.get("x").unwrap().as_deref(), Some(b"1".as_slice()));
    drop((a, stores));
    // Damage inside.
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0xee);
    std::fs::write(&file, bytes).unwrap();
    let stores = Stores::open(&file).unwrap();
    assert!(stores.moved_aside().is_some());
    assert_eq!(stores.of("a").get("x").unwrap(), None);
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Stores::open(&folder.path().join("no/such/plugins.db")).err().unwrap();
    assert!(error.contains("no/such/plugins.db"), "{error}");
}
