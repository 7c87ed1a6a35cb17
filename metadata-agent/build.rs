//! Compiles the eBPF programs, so that the agent always embeds what stands in the source now.
//!
//! `METADATA_EBPF_OBJECT` names a compiled object to embed instead, for packagers who build it by other means.
use std::{env, error::Error, path::Path};

#[path = "../xtask/src/ebpf.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with xtask, which uses the rest")]
mod ebpf;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=METADATA_EBPF_OBJECT");
    println!("cargo::rerun-if-env-changed=METADATA_EBPF_RUSTC");
    println!("cargo::rerun-if-changed=../metadata-ebpf/src");
    println!("cargo::rerun-if-changed=../metadata-ebpf/Cargo.toml");
    println!("cargo::rerun-if-changed=../Cargo.lock");
    println!("cargo::rerun-if-changed=../xtask/src/ebpf.rs");

    let object = match env::var_os("METADATA_EBPF_OBJECT") {
        Some(path) => path.into(),
        None => {
            let root =
                Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the crate has no parent folder")?;
            // Below OUT_DIR every profile would compile core again; cargo locks the shared folder by itself.
            ebpf::Toolchain::find()
                .map_err(|error| error.to_string())?
                .build(root, &root.join("target/ebpf"))?
        }
    };
    println!("cargo::rustc-env=METADATA_DATAPATH={}", Path::new(&object).display());
    Ok(())
}
