//! The program: allocator and dispatch. Everything else is in the library.

use std::process::ExitCode;

// For many small allocations by several threads it needs about half the time of the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    netwatch_server::cli::run()
}
