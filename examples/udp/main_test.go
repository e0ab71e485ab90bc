package main

import (
	"fmt"
	"net"
	"testing"
	"time"

	"example.com/grace-examples/restarttest"
)

func TestRestartsLoseNoDatagram(t *testing.T) {
	t.Parallel()
	s := restarttest.Start(t)
	s.RestartUnderLoad(5, 8, func() (restarttest.Ask, error) {
		c, err := net.Dial("udp", s.Addr)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { c.Close() })
		n := 0
		b := make([]byte, 100)
		return func() (pid int, err error) {
			n++
			c.SetReadDeadline(time.Now().Add(restarttest.Patience))
			if _, err := fmt.Fprint(c, n); err != nil {
				return 0, err
			}
			size, err := c.Read(b)
			if err != nil {
				return 0, err
			}
			answer := 0
			if _, err := fmt.Sscanf(string(b[:size]), "%d %d", &pid, &answer); err != nil || answer != n {
				return 0, fmt.Errorf("datagram %d is answered %q", n, b[:size])
			}
			return pid, nil
		}, nil
	})
	s.Stop()
}
