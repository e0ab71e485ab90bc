//go:build !unix

package main

import "io/fs"

// isOurs is not known here.
func isOurs(fs.FileInfo) bool { return false }
