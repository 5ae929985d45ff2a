//! Real plugin files of the workspace.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use tempfile::TempDir;

/// Builds a plugin of the workspace with the profile of this test, and gives
/// its file.
pub(crate) fn plugin(package: &str) -> PathBuf {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(["build", "--quiet", "--offline", "--package", package]);
    command.arg("--target-dir").arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        command.arg("--release");
    }
    assert!(command.status().unwrap().success(), "{package} does not build");
    profile.join(format!("lib{}.so", package.replace('-', "_")))
}

/// A folder with the join rules that ship with Pilot and nothing else.
pub(crate) fn shipped() -> &'static Path {
    static SHIPPED: OnceLock<TempDir> = OnceLock::new();
    let made = SHIPPED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        for rule in ["open", "token", "invite"] {
            let file = plugin(&format!("pilot-plugin-join-{rule}"));
            std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
        folder
    });
    made.path()
}
