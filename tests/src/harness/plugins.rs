//! Plugins for a real daemon: C files compiled, files put into a folder at one
//! moment, and what the daemon says of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::network::{Daemon, eventually};
use super::process::run;

/// The compiler takes no longer unless it hangs.
const COMPILE_LIMIT: Duration = Duration::from_secs(60);
/// Where `tests/plugins/version.c` keeps its version.
const MARK: &[u8] = b"@version:";

/// Compiles one of the C plugins in `tests/plugins` to `to`.
///
/// # Errors
/// When there is no compiler, or it is not content.
pub fn compile_plugin(name: &str, to: &Path) -> Result<()> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let source = top.join("tests/plugins").join(name);
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"]);
    cc.arg("-I").arg(top.join("sdk/plugin/include")).arg("-o").arg(to).arg(source);
    let done = run("cc", cc, COMPILE_LIMIT)?;
    ensure!(done.status.success(), "{name} does not compile: {}", done.stderr);
    Ok(())
}

/// Puts a file into a folder, which is made if it is missing, in one moment:
/// never half of it is seen.
///
/// # Errors
/// When it cannot be written.
pub fn install(folder: &Path, name: &str, contents: &[u8]) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    // A name that is no plugin's.
    let new = folder.join(".new");
    fs::write(&new, contents)?;
    let to = folder.join(name);
    fs::rename(new, &to)?;
    Ok(to)
}

/// `tests/plugins/version.c`: answers every piece of data on port 4000 with its
/// version.
pub struct VersionPlugin(Vec<u8>);

impl VersionPlugin {
    /// Compiles it, with `folder` for the file.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn compile(folder: &Path) -> Result<Self> {
        let file = folder.join("version.so");
        compile_plugin("version.c", &file)?;
        Ok(Self(fs::read(file)?))
    }

    /// The library with this version, of eight characters. One that begins with
    /// `X` fails its self-test.
    ///
    /// # Errors
    /// When the version has another length.
    pub fn library(&self, version: &str) -> Result<Vec<u8>> {
        ensure!(version.len() == 8, "a version has eight characters, not {version:?}");
        let mut library = self.0.clone();
        let mark = library.windows(MARK.len()).position(|w| w == MARK).context("no version")?;
        let at = mark + MARK.len();
        library[at..at + version.len()].copy_from_slice(version.as_bytes());
        Ok(library)
    }
}

impl Daemon {
    /// Waits until what the daemon says of a plugin is as `wanted`.
    ///
    /// # Errors
    /// When it does not become so; the text has what it said last, and its log.
    pub async fn until_plugin(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let client = self.client().await?;
        let mut last = Value::Null;
        let what = format!("{name}: {what}");
        let waited = eventually(&what, async || {
            last = client.plugin(name).await.unwrap_or_default();
            wanted(&last).then(|| last.clone())
        });
        let waited = waited.await;
        waited.with_context(|| format!("last {last:#}\n{}", self.process.log_tail()))
    }

    /// Waits until a plugin is in this state.
    ///
    /// # Errors
    /// Like [`Self::until_plugin`].
    pub async fn until_state(&self, name: &str, state: &str) -> Result<Value> {
        self.until_plugin(name, state, |plugin| plugin["state"] == state).await
    }
}
