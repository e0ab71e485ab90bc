//go:build unix

package grace_test

import (
	"syscall"
	"testing"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// Each mode of the test server restarts and stops.
func TestEachModeRestarts(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"grace", "bare", "ownloop", "netloop", "http"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			s := driver.Start(t, "-mode", mode, "-listen", "127.0.0.1:0")
			first := s.Ready(1)
			first.Signal(syscall.SIGUSR2)
			second := s.Ready(2)
			first.WaitExit(0)
			second.Signal(syscall.SIGTERM)
			second.WaitExit(0)
			s.WaitEnd()
			if first.Addrs[0] != second.Addrs[0] {
				t.Errorf("the first listened on %v, the second on %v", first.Addrs, second.Addrs)
			}
		})
	}
}
