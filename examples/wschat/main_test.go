package main

import (
	"context"
	"net"
	"testing"
	"time"

	"example.com/grace-examples/restarttest"
	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
)

// A socket is a client's connection.
type socket struct{ net.Conn }

func (s socket) Send(message string) error {
	f, err := ws.CompileFrame(ws.MaskFrame(ws.NewTextFrame([]byte(message))))
	if err != nil {
		return err
	}
	// In two parts: a restart may come between them.
	half := len(f) / 2
	if _, err := s.Write(f[:half]); err != nil {
		return err
	}
	_, err = s.Write(f[half:])
	return err
}

func (s socket) Receive() (string, error) {
	b, err := wsutil.ReadServerText(s)
	return string(b), err
}

func start(t *testing.T, s *restarttest.Server, clients int, pause time.Duration) *restarttest.Chat {
	t.Helper()
	return restarttest.StartChat(t, clients, pause, func() (restarttest.Line, error) {
		c, _, _, err := ws.Dial(context.Background(), "ws://"+s.Addr)
		return socket{c}, err
	})
}

func TestClientsStayOverRestarts(t *testing.T) {
	s := restarttest.Start(t)
	clients, restarts := 1000, 20
	if testing.Short() {
		clients, restarts = 100, 5
	}
	c := start(t, s, clients, 2*time.Second)
	for range restarts {
		c.More(clients / 5)
		s.Restart()
	}
	sent := c.End()
	disconnected := c.Disconnected()
	for _, err := range disconnected {
		t.Error(err)
	}
	t.Logf("%d messages, %d restarts, %d disconnected", sent, restarts, len(disconnected))
	s.Stop()
}
