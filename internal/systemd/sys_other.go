//go:build !linux

package systemd

// There is no systemd here, and so nobody to receive these.

func monotonicUsec() int64 { return 0 }

func rights(fds []int) []byte { return nil }
