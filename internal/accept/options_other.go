//go:build !linux

package accept

import "os"

// KeepOptions does nothing: no connection moves here.
func KeepOptions(*os.File) (restore func()) { return func() {} }
