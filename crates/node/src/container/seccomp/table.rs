//! Numbers of system calls.

/// Name and number per architecture; one line each. Source: the kernel's headers.
const TABLE: &str = include_str!("syscalls.txt");

/// An architecture whose programs a machine can run. Source: linux/audit.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit programs on a 64-bit x86.
    X86,
    /// 64-bit ARM.
    Aarch64,
}

impl Arch {
    /// What this program runs on; none where no filter can be made.
    pub(super) fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// By the name that profiles use; none for those that this program knows no numbers of.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "SCMP_ARCH_X86_64" => Some(Self::X86_64),
            "SCMP_ARCH_X86" => Some(Self::X86),
            "SCMP_ARCH_AARCH64" => Some(Self::Aarch64),
            _ => None,
        }
    }

    /// As the kernel tells it to a filter.
    pub(super) fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xC000_003E,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xC000_00B7,
        }
    }

    /// The number of a system call; none where the architecture does not have it.
    pub(super) fn number(self, name: &str) -> Option<u32> {
        let column = match self {
            Self::X86_64 => 1,
            Self::X86 => 2,
            Self::Aarch64 => 3,
        };
        let lines = TABLE.lines();
        let mut of_name = lines.filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        of_name.next()?.split(' ').nth(column)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(Arch::X86_64.number("openat"), Some(257));
        assert_eq!(Arch::X86.number("openat"), Some(295));
        assert_eq!(Arch::Aarch64.number("openat"), Some(56));
        assert_eq!(Arch::Aarch64.number("open"), None);
        assert_eq!(Arch::X86_64.number("open"), Some(2));
        assert_eq!(Arch::X86_64.number(""), None);
        assert_eq!(Arch::X86_64.number("no_such_call"), None);
    }

    #[test]
    fn every_line_has_a_name_and_three_numbers() {
        for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(words.len(), 4, "{line}");
            assert!(words[1..].iter().all(|word| *word == "-" || word.parse::<u32>().is_ok()), "{line}");
        }
    }
}
