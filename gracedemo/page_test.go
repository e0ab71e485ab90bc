//go:build unix

package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

var screenshots = flag.String("screenshots", "", "`directory` for pictures of the page")

// A browser is a Chromium without a window, driven by the DevTools protocol over a pair
// of pipes: messages in JSON, each ended by a zero byte.
type browser struct {
	t       *testing.T
	in      io.Writer
	out     *bufio.Reader
	session string
	id      int
}

// openBrowser opens a page, or skips the test where there is no Chromium that works.
func openBrowser(t *testing.T, url string) *browser {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path == "" {
			path, _ = exec.LookPath(name)
		}
	}
	if path == "" {
		t.Skip("no chromium here")
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--user-data-dir="+t.TempDir(), "--remote-debugging-pipe", "about:blank")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	theirIn.Close()
	theirOut.Close()
	b := &browser{t: t, in: in, out: bufio.NewReader(out)}
	timeout := time.AfterFunc(2*driver.Patience, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		timeout.Stop()
		in.Close() // it ends then
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		out.Close()
		if t.Failed() {
			t.Logf("chromium said:\n%s", &said)
		}
	})
	var target struct{ TargetID string }
	if err := b.try("Target.createTarget", map[string]any{"url": url}, &target); err != nil {
		t.Skipf("a chromium that does not work: %v\n%s", err, &said)
	}
	var session struct{ SessionID string }
	b.do("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &session)
	b.session = session.SessionID
	return b
}

// do calls a method of the protocol.
func (b *browser) do(method string, params, result any) {
	b.t.Helper()
	if err := b.try(method, params, result); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) try(method string, params, result any) error {
	b.id++
	call := map[string]any{"id": b.id, "method": method, "params": params}
	if b.session != "" {
		call["sessionId"] = b.session
	}
	message, err := json.Marshal(call)
	if err != nil {
		return err
	}
	if _, err := b.in.Write(append(message, 0)); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	for {
		message, err := b.out.ReadBytes(0)
		if err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		var answer struct {
			ID     int
			Error  json.RawMessage
			Result json.RawMessage
		}
		if err := json.Unmarshal(bytes.TrimSuffix(message, []byte{0}), &answer); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		switch {
		case answer.ID != b.id: // an event
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", method, answer.Error)
		case result != nil:
			return json.Unmarshal(answer.Result, result)
		default:
			return nil
		}
	}
}

// eval returns the value of an expression, as text.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var answer struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	b.do("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "userGesture": true}, &answer)
	if answer.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, answer.ExceptionDetails)
	}
	return fmt.Sprint(answer.Result.Value)
}

// text returns what an element says.
func (b *browser) text(id string) string {
	b.t.Helper()
	return b.eval(`document.getElementById("` + id + `")?.textContent ?? ""`)
}

// press presses a key, and releases it.
func (b *browser) press(key, text string, code int) {
	b.t.Helper()
	event := map[string]any{"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
	b.do("Input.dispatchKeyEvent", event, nil)
	event["type"] = "keyUp"
	delete(event, "text")
	b.do("Input.dispatchKeyEvent", event, nil)
}

// picture takes one, if they were asked for.
func (b *browser) picture(name string, width int, scheme string) {
	b.t.Helper()
	b.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}, nil)
	b.do("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	if overflow := b.eval(`document.documentElement.scrollWidth - innerWidth`); overflow[0] != '-' && overflow != "0" {
		b.t.Errorf("at a width of %d the page is %s pixels wider", width, overflow)
	}
	if *screenshots == "" {
		return
	}
	time.Sleep(300 * time.Millisecond) // a frame
	var shot struct{ Data string }
	b.do("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err == nil {
		err = os.WriteFile(filepath.Join(*screenshots, name+".png"), png, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// The page sends requests all the while, loses none over restarts, and sees each process,
// whoever restarts: a signal, the command, or its button.
func TestPageNoticesNothingButColours(t *testing.T) {
	t.Parallel()
	driver.NotShort(t)
	restarts := driver.Times(10, 3)
	d := startDemo(t, "-button", "-control", "control")
	// Half a request keeps the first process there until the end.
	half, err := net.Dial("tcp", d.addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	if _, err := half.Write([]byte("GET / HTTP/1.1\r\n")); err != nil {
		t.Fatal(err)
	}
	b := openBrowser(t, "http://"+d.addrs[0]+"/")
	by := func(pid int) {
		t.Helper()
		driver.Eventually(t, fmt.Sprintf("the page to see pid %d", pid), func() bool { return b.text("by") == strconv.Itoa(pid) })
	}
	by(d.pid)
	b.picture("start", 1200, "light")
	b.eval(fmt.Sprintf(`{ const ask = fetch; fetch = (url, how) => ask(url.replace("10s", "%ds"), how) }`, driver.Times(10, 3)))
	b.eval(`document.getElementById("begin").click()`)
	pids := []int{d.pid}
	for n := range restarts {
		old := pids[n]
		switch n % 3 {
		case 0:
			d.Process(old).Signal(syscall.SIGUSR2)
		case 1:
			if _, stderr, status := d.run("-control", "control", "-restart"); status != done {
				t.Fatalf("-restart: exit status %d, %q", status, stderr)
			}
		case 2: // by keyboard
			b.eval(`document.getElementById("restart").focus()`)
			b.press("Enter", "\r", 13)
		}
		next := d.Started(n + 2)
		by(next.Pid)
		pids = append(pids, next.Pid)
		if n == 0 {
			driver.Eventually(t, "the page to say what the predecessor holds", func() bool { return strings.Contains(b.text("generations"), "holds 2 connections") })
		}
	}
	if n := b.text("restarts"); n != strconv.Itoa(restarts) {
		t.Errorf("the page has seen %s restarts", n)
	}
	driver.Eventually(t, "the outcome of the button", func() bool { return strings.Contains(b.text("outcome"), "serves, after") })
	var seen []int
	if err := json.Unmarshal([]byte(b.eval(`JSON.stringify([...new Set(requests)])`)), &seen); err != nil || !slices.Equal(seen, pids) {
		t.Errorf("the squares are of %v, %v; the processes were %v", seen, err, pids)
	}
	if live := b.text("live"); live == "" {
		t.Error("a screen reader hears nothing of a restart")
	}
	driver.Eventually(t, "the page to know that the first process is there", func() bool {
		return strings.Contains(b.text("generations"), fmt.Sprintf("%d draining", d.pid))
	})
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int{1200, 390} {
			b.picture(fmt.Sprintf("%s-%d", scheme, width), width, scheme)
		}
	}
	// The first process has had the slow request all the while.
	driver.Eventually(t, "the slow request to be answered", func() bool { return strings.Contains(b.text("slow"), "was answered by process") })
	if slow := b.text("slow"); !strings.HasSuffix(slow, fmt.Sprintf("answered by process %d.", d.pid)) {
		t.Errorf("%s; want pid %d", slow, d.pid)
	}
	label := b.eval(`document.getElementById("strip").getAttribute("aria-label")`)
	if !strings.Contains(label, fmt.Sprintf("0 failed, by %d processes", restarts+1)) {
		t.Errorf("the strip is described as %q", label)
	}
	if failed, answered := b.text("failed"), b.text("answered"); failed != "0" || answered == "0" {
		t.Errorf("%s requests answered, %s failed; %s", answered, failed, b.text("error"))
	}
	t.Logf("%s requests answered over %d restarts", b.text("answered"), restarts)
	// What can be pressed, by Tab in this order.
	if order := b.eval(`[...document.querySelectorAll("button:not([hidden])")].map(e => e.textContent).join(", ")`); order != "Restart, Send a 10-second request, Pause" {
		t.Errorf("the buttons are %s", order)
	}
	// A server that is gone is seen, when there is none to take over again.
	last := d.Process(pids[restarts-1])
	half.Close()
	last.Wait()
	d.Process(pids[restarts]).Signal(syscall.SIGKILL)
	driver.Eventually(t, "the page to see a failure", func() bool { return b.text("failed") != "0" && strings.Contains(b.text("error"), "Last failure") })
	b.picture("failed", 1200, "light")
}

func TestPageHasNoButtonUnlessAllowed(t *testing.T) {
	t.Parallel()
	driver.OnlyAll(t)
	d := startDemo(t)
	b := openBrowser(t, "http://"+d.addrs[0]+"/")
	driver.Eventually(t, "the page to have answers", func() bool { return b.text("by") == strconv.Itoa(d.pid) })
	if hidden := b.eval(`document.getElementById("restart").hidden`); hidden != "true" {
		t.Error("the button that restarts is there")
	}
}
