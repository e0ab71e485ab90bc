package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
)

func TestChatsSurviveRestarts(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("restarts a program")
	}
	cfg := testConfig(t)
	kinds, err := chooseKinds("chat", false)
	if err != nil {
		t.Fatal(err)
	}
	r, err := runKind(t.Context(), cfg, kinds[0], func(*target) {})
	if err != nil {
		t.Fatal(err)
	}
	if r.Restarts != cfg.restarts || len(r.Failures) > 0 || r.Requests < cfg.clients {
		t.Errorf("%d restarts, want %d:\n%s", r.Restarts, cfg.restarts, r.text())
	}
}

// A line that is not answered, or twice, or by a process that has forgotten those before, is a wrong answer.
func TestChatClientSeesLinesOnceAndInOrder(t *testing.T) {
	for name, wrong := range map[string]func(n int, line string) string{
		"forgotten": func(_ int, line string) string { return "1 1 " + line },
		"twice":     func(n int, line string) string { return strings.Repeat(fmt.Sprintf("1 %d %s", n, line), 2) },
		"skipped":   func(n int, line string) string { return fmt.Sprintf("1 %d %s", n+1, line) },
		"another":   func(n int, line string) string { return fmt.Sprintf("1 %d not %s", n, line) },
	} {
		client, server := net.Pipe()
		c := &chatClient{rawClient: rawClient{dial: func() (net.Conn, error) { return client, nil }}}
		go func() {
			defer server.Close()
			in := bufio.NewReader(server)
			for n := 1; ; n++ {
				line, err := in.ReadString('\n')
				if err != nil {
					return
				}
				said := fmt.Sprintf("1 %d %s", n, line)
				if n == 3 {
					said = wrong(n, line)
				}
				if _, err := server.Write([]byte(said)); err != nil {
					return
				}
			}
		}()
		for n := 1; n <= 2; n++ {
			if _, err := c.do(request{body: fmt.Sprintf("line %d\n", n)}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.do(request{body: "line 3\n"}); !errors.Is(err, errWrong) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
