//! Container output on disk, in the CRI log format.
