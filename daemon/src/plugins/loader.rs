//! Opens files of plugins and scripts with the back-ends of this build.

use std::path::Path;
use std::sync::Arc;

use pilot_host::{Backend, FileKind, Isolation, Limits, Loader};

/// The back-ends.
pub(crate) struct Loaders;

impl Loader for Loaders {
    fn open(
        &self,
        kind: FileKind,
        path: &Path,
        _isolation: Isolation,
        _limits: &Limits,
    ) -> Result<Arc<dyn Backend>, String> {
        let what = match kind {
            FileKind::Library => "shared libraries",
            FileKind::Script => "scripts",
        };
        Err(format!("this build of the daemon loads no {what}: {}", path.display()))
    }
}
