package handoff

import (
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/accept"
)

// What the program has set of a connection holds for its client, whoever serves it.
func TestMovedConnectionKeepsItsOptions(t *testing.T) {
	checkLeaks(t)
	options := func(c syscall.Conn) (values []int) {
		t.Helper()
		if err := withFDs([]syscall.Conn{c}, func(fds []int) error {
			for _, o := range [][2]int{
				{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE},
				{syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE},
				{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL},
				{syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT},
				{syscall.IPPROTO_TCP, syscall.TCP_NODELAY},
			} {
				v, err := syscall.GetsockoptInt(fds[0], o[0], o[1])
				if err != nil {
					return err
				}
				values = append(values, v)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return values
	}
	l := listenTCP(t)
	s, g := newGenerations(t)
	arrived := make(chan net.Conn, 1)
	g.Predecessor.OnMove(func(c net.Conn, _ []byte) { arrived <- c }, accept.New(nil))
	for _, enable := range []bool{false, true} {
		_, server := tcpPair(t, l)
		server.SetNoDelay(false)
		server.SetKeepAliveConfig(net.KeepAliveConfig{Enable: enable, Idle: 5 * time.Minute, Interval: time.Minute, Count: 3})
		want := options(server)
		if err := s.MoveOwn([]syscall.Conn{server}, [][]byte{nil}, patience); err != nil {
			t.Fatal(err)
		}
		c := await(t, "the connection", arrived)
		if got := options(c.(syscall.Conn)); !slices.Equal(got, want) {
			t.Errorf("its options are %v, want %v", got, want)
		}
		c.Close()
		server.Close()
	}
}
