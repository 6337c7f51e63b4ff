//! SELinux labels.
