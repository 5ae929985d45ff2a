//! Which back-end opens which file.

use std::path::Path;
use std::sync::Arc;

use crate::instance::{Backend, Limits};
use crate::lua::open_lua;
use crate::manager::{FileKind, Loader};
use crate::native::open_native;
use crate::process::open_process;
use crate::settings::Isolation;

/// The back-ends of this build.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loaders;

impl Loader for Loaders {
    fn open(
        &self,
        kind: FileKind,
        path: &Path,
        isolation: Isolation,
        limits: &Limits,
    ) -> Result<Arc<dyn Backend>, String> {
        match (kind, isolation) {
            (FileKind::Library, Isolation::None) => open_native(path).map_err(|e| e.to_string()),
            (FileKind::Library, Isolation::Process) => {
                open_process(path, limits).map_err(|e| e.to_string())
            }
            // A script's virtual machine is a wall of its own.
            (FileKind::Script, _) => open_lua(path).map_err(|e| e.to_string()),
        }
    }
}
