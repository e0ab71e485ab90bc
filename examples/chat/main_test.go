package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/grace-examples/restarttest"
)

// A line is a client's connection.
type line struct {
	net.Conn
	in *bufio.Reader
}

func (l line) Send(message string) error {
	// In two parts: a restart may come between them.
	half := len(message) / 2
	if _, err := fmt.Fprint(l, message[:half]); err != nil {
		return err
	}
	_, err := fmt.Fprintln(l, message[half:])
	return err
}

func (l line) Receive() (string, error) {
	message, err := l.in.ReadString('\n')
	return strings.TrimSuffix(message, "\n"), err
}

func start(t *testing.T, s *restarttest.Server, clients int, pause time.Duration) *restarttest.Chat {
	t.Helper()
	return restarttest.StartChat(t, clients, pause, func() (restarttest.Line, error) {
		c, err := net.Dial("tcp", s.Addr)
		if err != nil {
			return nil, err
		}
		return line{c, bufio.NewReader(c)}, nil
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

// upgrade has the next restart run another program.
func upgrade(t *testing.T, path, with string) {
	t.Helper()
	if err := os.Rename(restarttest.Build(t, with), path); err != nil {
		t.Fatal(err)
	}
}

func TestCrashingSuccessorLosesOnlyWhatItHadTaken(t *testing.T) {
	path := restarttest.Build(t)
	s := restarttest.StartFile(t, path)
	const clients = 1000 // which do not move in one batch
	c := start(t, s, clients, 2*time.Second)
	upgrade(t, path, "./testdata/crashing")
	from, pid := s.Mark(), s.Pid
	s.Signal(syscall.SIGUSR2)
	s.Line(from, fmt.Sprintf("serving again with pid %d", pid))
	c.More(1000)
	disconnected := c.Disconnected()
	t.Logf("%d of %d are disconnected", len(disconnected), clients)
	if len(disconnected) == 0 || len(disconnected) == clients {
		t.Errorf("%d of %d are disconnected, want those that the successor had taken", len(disconnected), clients)
	}
	c.End()
	if again := c.Disconnected(); len(again) != len(disconnected) {
		t.Errorf("later, %d are disconnected: %v", len(again), again)
	}
}

func TestDowngradeKeepsServingClientsInTheOldProcess(t *testing.T) {
	path := restarttest.Build(t)
	s := restarttest.StartFile(t, path)
	c := start(t, s, 100, 100*time.Millisecond)
	upgrade(t, path, "./testdata/old")
	from, pid := s.Mark(), s.Pid
	s.Signal(syscall.SIGUSR2)
	s.Line(from, fmt.Sprintf("pid %d drains", pid))
	s.Line(from, "serving "+s.Addr)
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if greeting, err := bufio.NewReader(conn).ReadString('\n'); greeting != "the old version\n" {
		t.Errorf("who connects now hears %q, %v", greeting, err)
	}
	c.More(300)
	c.End()
	for _, err := range c.Disconnected() {
		t.Error(err)
	}
}
