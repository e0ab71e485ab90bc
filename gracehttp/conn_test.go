package gracehttp

import (
	"testing"
	"unsafe"
)

// What each request touches of a connection is one line of the processor's cache, if
// each of several that are allocated together begins with one.
func TestConnectionKeepsToCacheLines(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("not laid out for this machine")
	}
	const line = 64
	var c tcpConn
	if size := unsafe.Sizeof(c); size%line != 0 {
		t.Errorf("a connection has %d bytes, want a multiple of %d", size, line)
	}
	if end := unsafe.Offsetof(c.conn) + unsafe.Offsetof(c.conn.entry); end > line {
		t.Errorf("what each request touches ends at byte %d, want at most %d", end, line)
	}
}
