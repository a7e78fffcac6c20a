//! File systems of their own, on loop devices, in memory or over FUSE. They require root.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// Ends processes with files in `$1`, thaws and unmounts it and removes `$2`, if standard input ends without a line.
const CLEAN_UP: &str = r#"
trap "" HUP INT TERM
read -r line && exit
fsfreeze --unfreeze "$1"
find /proc/[0-9]*/fd -lname "$1/*" | cut -d / -f 3 | sort -u | xargs -r kill -9
umount "$1" || umount --lazy "$1"
rm -rf --one-file-system "$2"
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
    Ramfs,
    Overlay,
    /// FUSE: a directory of another file system.
    Bindfs,
    /// FUSE: an ext4 image.
    Fuse2fs,
    /// FUSE: a directory as a cloud storage with a cache for writes.
    Rclone,
    /// The same without the cache. Files can only be written from their beginning to their end.
    RcloneWithoutCache,
}

/// A mounted file system. It is thawed and unmounted when it is dropped, and also if the test process is killed.
pub(crate) struct FileSystem {
    /// The mount point.
    pub(crate) path: PathBuf,
    clean_up: Child,
    _dir: TempDir,
}

/// Runs a program, and panics with its output if it fails.
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("requires the program {program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Panics unless the test runs as root.
pub(crate) fn require_root() {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root, "requires root, to mount and freeze file systems: run it with sudo or in a virtual machine");
}

impl FileSystem {
    /// Mounts a new file system. `mib` is its size, if its kind has a size.
    pub(crate) fn mount(kind: Kind, mib: u64) -> Self {
        require_root();
        let dir = tempfile::tempdir().unwrap();
        let in_dir = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
        let path = in_dir("mounted");
        fs::create_dir(&path).unwrap();
        // Before the mount, so that there is no moment without it.
        let mut clean_up = Command::new("sh");
        clean_up.args(["-c", CLEAN_UP, "sh", &path, dir.path().to_str().unwrap()]);
        let clean_up = clean_up.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mounted = Self { path: PathBuf::from(&path), clean_up, _dir: dir };
        let image = in_dir_of(&mounted, "image");
        if let Kind::Ext4 | Kind::Xfs | Kind::Btrfs | Kind::Fuse2fs = kind {
            fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        }
        // Without access times, so that reads do not write.
        let mount = |mkfs: &str, args: &[&str]| {
            run(mkfs, &[args, &[&image]].concat());
            run("mount", &["-o", "loop,noatime", &image, &path]);
        };
        match kind {
            Kind::Ext4 => mount("mkfs.ext4", &["-q", "-m", "0"]),
            Kind::Xfs => mount("mkfs.xfs", &["-q"]),
            Kind::Btrfs => mount("mkfs.btrfs", &["-q"]),
            Kind::Tmpfs => run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}M"), "tmpfs", &path]),
            Kind::Ramfs => run("mount", &["-t", "ramfs", "ramfs", &path]),
            Kind::Overlay => {
                let [lower, upper, work] = ["lower", "upper", "work"].map(|name| in_dir_of(&mounted, name));
                [&lower, &upper, &work].into_iter().for_each(|dir| fs::create_dir(dir).unwrap());
                let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
                run("mount", &["-t", "overlay", "-o", &options, "overlay", &path]);
            }
            Kind::Bindfs => {
                let source = in_dir_of(&mounted, "source");
                fs::create_dir(&source).unwrap();
                run("bindfs", &[&source, &path]);
            }
            Kind::Rclone | Kind::RcloneWithoutCache => {
                let [source, cache] = ["source", "cache"].map(|name| in_dir_of(&mounted, name));
                fs::create_dir(&source).unwrap();
                let mode = if kind == Kind::Rclone { "writes" } else { "off" };
                let options = ["--daemon", "--config", "/dev/null", "--cache-dir", &cache, "--vfs-cache-mode", mode];
                run("rclone", &[&["mount", &format!(":local:{source}"), &path], &options[..]].concat());
            }
            Kind::Fuse2fs => {
                run("mkfs.ext4", &["-q", "-m", "0", &image]);
                run("fuse2fs", &[&image, &path]);
            }
        }
        mounted
    }

    /// Stalls the file system: writes hang until the result is dropped.
    pub(crate) fn freeze(&self) -> Frozen<'_> {
        run("fsfreeze", &["--freeze", self.path.to_str().unwrap()]);
        Frozen(&self.path)
    }

    /// Changes the file system to read-only.
    pub(crate) fn make_read_only(&self) {
        run("mount", &["-o", "remount,ro", self.path.to_str().unwrap()]);
    }

    /// Free bytes for all users.
    pub(crate) fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.path).unwrap();
        disk.f_bavail * disk.f_frsize
    }
}

/// A path next to the mount point.
fn in_dir_of(mounted: &FileSystem, name: &str) -> String {
    mounted.path.with_file_name(name).into_os_string().into_string().unwrap()
}

fn succeeds(program: &str, args: &[&str], path: &Path) -> bool {
    let status = Command::new(program).args(args).arg(path).stdin(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        succeeds("fsfreeze", &["--unfreeze"], &self.path);
        // A killed process may keep its files for a moment.
        let is_unmounted = (0..100).any(|_| {
            thread::sleep(Duration::from_millis(20));
            succeeds("umount", &[], &self.path)
        });
        if !is_unmounted {
            succeeds("umount", &["--lazy"], &self.path);
        }
        // An error means that the process has ended already.
        drop(self.clean_up.stdin.take().map(|mut stdin| stdin.write_all(b"done\n")));
        drop(self.clean_up.wait());
    }
}

/// Must be dropped before any server: a process that waits for a frozen file system cannot end.
pub(crate) struct Frozen<'a>(&'a Path);

impl Frozen<'_> {
    /// Ends the stall.
    pub(crate) fn thaw(self) {}
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let is_thawed = succeeds("fsfreeze", &["--unfreeze"], self.0);
        assert!(is_thawed || thread::panicking(), "the file system cannot be thawed");
    }
}
