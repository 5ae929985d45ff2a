//! The header for C is the one that `abi.rs` gives. After a change run with
//! `PILOT_BLESS=1`.

use std::path::Path;

#[test]
fn the_header_is_that_of_the_abi() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(here.join("src/abi.rs"))
        .generate()
        .unwrap();
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let file = here.join("include/pilot_plugin.h");
    if std::env::var_os("PILOT_BLESS").is_some() {
        std::fs::write(&file, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(made == kept, "include/pilot_plugin.h is not that of abi.rs; run with PILOT_BLESS=1");
    assert!(made.contains("PilotPlugin") && made.contains("PILOT_WOULD_BLOCK"));
}
