//go:build unix

package main

import (
	"io/fs"
	"os"
	"syscall"
)

// isOurs reports whether a file is this user's.
func isOurs(info fs.FileInfo) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid()
}
