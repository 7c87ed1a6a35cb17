//! Compiles the eBPF programs, so that the agent always embeds what stands in the source now.
//!
//! Tells the agent its version as well, with the commit; without where that is not known.
//!
//! `METADATA_EBPF_OBJECT` names a compiled object to embed instead, for packagers who build it by other means, and
//! `METADATA_COMMIT` the commit of sources that are in no git repository any more.
use std::{env, error::Error, path::Path, process::Command};

#[path = "../xtask/src/ebpf.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with xtask, which uses the rest")]
mod ebpf;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the crate has no parent folder")?;
    tell_version(root);

    println!("cargo::rerun-if-env-changed=METADATA_EBPF_OBJECT");
    println!("cargo::rerun-if-env-changed=METADATA_EBPF_RUSTC");
    println!("cargo::rerun-if-changed=../metadata-ebpf/src");
    println!("cargo::rerun-if-changed=../metadata-ebpf/Cargo.toml");
    println!("cargo::rerun-if-changed=../Cargo.lock");
    println!("cargo::rerun-if-changed=../xtask/src/ebpf.rs");

    let object = match env::var_os("METADATA_EBPF_OBJECT") {
        Some(path) => path.into(),
        None => {
            // Below OUT_DIR every profile would compile core again; cargo locks the shared folder by itself.
            ebpf::Toolchain::find()
                .map_err(|error| error.to_string())?
                .build(root, &root.join("target/ebpf"))?
        }
    };
    println!("cargo::rustc-env=METADATA_DATAPATH={}", Path::new(&object).display());
    Ok(())
}

/// Sets what `version.rs` reads.
fn tell_version(root: &Path) {
    println!("cargo::rerun-if-env-changed=METADATA_COMMIT");
    // A build that is not optimized is one among many, and would be done anew after each commit.
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let given = env::var("METADATA_COMMIT").ok();
    let commit = given.or_else(|| if is_release { commit(root) } else { None }).unwrap_or_default();
    let commit = commit.trim();
    let release = env!("CARGO_PKG_VERSION");
    let version = if commit.is_empty() { release.to_owned() } else { format!("{release} ({commit})") };
    println!("cargo::rustc-env=METADATA_COMMIT={commit}");
    println!("cargo::rustc-env=METADATA_VERSION={version}");
}

/// The commit that is checked out; none where git or its repository is missing.
fn commit(root: &Path) -> Option<String> {
    let git = |words: &[&str]| {
        let output = Command::new("git").current_dir(root).args(words).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // Sources in a folder of somebody else's repository are of no commit of that one.
    if Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    // What changes with each commit and checkout. A file that is not there would have cargo run this each time.
    for name in ["HEAD", "logs/HEAD"] {
        let file = root.join(git(&["rev-parse", "--git-path", name])?);
        if file.exists() {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}
