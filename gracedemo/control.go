package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/facebookgo/grace/gracehttp"
)

// What -restart and -status exit with.
const (
	done = iota
	failed
	nobody
	underWay
	unknown
)

var errNoControl = errors.New("there is none by default without a port; -control names one")

// controlAddress returns where the control server listens, as gracehttp.Serve has it. By
// default that is a unix socket, or errNoControl, or why it cannot be one.
func controlAddress() (string, error) {
	switch c := *control; {
	case c == "":
		path, err := defaultControl()
		return "unix:" + path, err
	case strings.HasPrefix(c, "unix:"), strings.HasPrefix(c, "systemd:"):
		return c, nil
	case strings.ContainsAny(c, "/@") || !strings.Contains(c, ":"):
		return "unix:" + c, nil
	default:
		return c, nil
	}
}

// defaultControl returns the path of a unix socket in a directory that nobody else can
// write to.
func defaultControl() (string, error) {
	_, service, err := net.SplitHostPort(*address0)
	if err != nil {
		return "", errNoControl
	}
	port, err := net.LookupPort("tcp", service)
	if err != nil || port == 0 || os.Geteuid() < 0 {
		return "", errNoControl
	}
	dir := filepath.Join(os.TempDir(), "gracedemo-"+strconv.Itoa(os.Geteuid()))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	if info, err := os.Lstat(dir); err != nil {
		return "", err
	} else if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !isOurs(info) {
		return "", fmt.Errorf("%s is not a directory of this user's alone", dir)
	}
	return filepath.Join(dir, strconv.Itoa(port)), nil
}

// askToRestart has the demo restarted, and returns the exit status.
func askToRestart() int {
	code, body, status := ask("POST", "/restart")
	if status != done {
		return status
	}
	var outcome gracehttp.Restarted
	err := json.Unmarshal(body, &outcome)
	switch {
	case err == nil && code == http.StatusOK:
		fmt.Println(outcome.Pid)
		return done
	case err == nil && code == http.StatusConflict:
		return complain(underWay, "%s", outcome.Error)
	case err == nil && code == http.StatusInternalServerError:
		return complain(failed, "%s", outcome.Error)
	case code == http.StatusNotFound, code == http.StatusMethodNotAllowed:
		return complain(nobody, "who answers there has no control handler")
	}
	return complain(unknown, "the answer is %d, %.200q", code, body)
}

// askForStatus prints how the demo is, and returns the exit status.
func askForStatus() int {
	code, body, status := ask("GET", "/status")
	if status != done {
		return status
	}
	if code != http.StatusOK || !json.Valid(body) {
		return complain(nobody, "who answers there has no control handler")
	}
	os.Stdout.Write(body)
	return done
}

// ask sends the control server a request, and returns its answer, or the exit status that
// says why there is none.
func ask(method, path string) (code int, body []byte, status int) {
	addr, err := controlAddress()
	if err != nil {
		return 0, nil, complain(nobody, "the control socket: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	c, err := dial(ctx, addr)
	if err != nil {
		return 0, nil, complain(nobody, "no demo answers: %v", err)
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return c, nil },
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://gracedemo"+path, nil)
	if err != nil {
		return 0, nil, complain(nobody, "%v", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, complain(unknown, "%v", err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		return 0, nil, complain(unknown, "%v", err)
	}
	return resp.StatusCode, body, done
}

// dial connects to where gracehttp.Serve listens by this address.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	if strings.HasPrefix(addr, "systemd:") {
		return nil, fmt.Errorf("%s: only the service knows where that is", addr)
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

func complain(status int, format string, args ...any) int {
	fmt.Fprintf(os.Stderr, "gracedemo: "+format+"\n", args...)
	return status
}
