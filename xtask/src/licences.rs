//! Whether every dependency may be given away inside an Apache-2.0 binary.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Licences that ask for no more than their notice.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Fails with the list of packages whose licence is not allowed.
pub fn check() -> Result<()> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()
        .context("cargo metadata cannot be started")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut refused = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or_default();
        if !allowed(licence) {
            refused.insert(name, licence);
        }
    }
    if !refused.is_empty() {
        bail!("licences that are not on the list in xtask/src/licences.rs: {refused:?}");
    }
    eprintln!("licences of {} packages: allowed", packages.len());
    Ok(())
}

/// Evaluates an SPDX expression; the old form with a slash means OR.
fn allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], " ");
    let terms = |text: &str, word: &str| -> Vec<String> {
        text.split(&format!(" {word} ")).map(|t| t.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    // Parentheses are dropped: every alternative of an AND is then judged by itself, which is stricter, never laxer,
    // for the form "(A OR B) AND C" that occurs in practice.
    terms(&expression, "AND")
        .iter()
        .all(|factor| terms(factor, "OR").iter().any(|licence| ALLOWED.contains(&licence.as_str())))
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn expressions_are_judged_as_a_lawyer_would() {
        assert!(allowed("MIT OR Apache-2.0"));
        assert!(allowed("MIT/Apache-2.0"));
        assert!(allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(allowed("GPL-3.0 OR MIT"));
        assert!(!allowed("GPL-3.0"));
        assert!(!allowed("MIT AND GPL-3.0"));
        assert!(!allowed(""));
    }
}
