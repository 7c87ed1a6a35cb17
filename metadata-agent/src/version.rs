//! The version of this build. The build script finds it out.
#![forbid(unsafe_code)]

/// Version of the release, followed by the commit in parentheses where that is known.
pub const VERSION: &str = env!("METADATA_VERSION");

/// Version of the release.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// Commit that was checked out when this was built. Empty for sources outside a git repository, and for builds that are not
/// optimized, which would have to be done anew after each commit.
pub const COMMIT: &str = env!("METADATA_COMMIT");
