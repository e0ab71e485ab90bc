//go:build linux

package fleet

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
	"github.com/facebookgo/grace/internal/testserver/systemd"
)

func TestMain(m *testing.M) { os.Exit(systemd.Run(m, "github.com/facebookgo/grace/gracedemo")) }

// Where the balancers listen, and what starts them with their own configuration.
var balancers = []struct{ name, file, to, addr, command string }{
	{"haproxy", "haproxy.cfg", "/etc/haproxy/haproxy.cfg", "127.0.0.1:8080", "haproxy -db -f /etc/haproxy/haproxy.cfg"},
	{"nginx", "nginx.conf", "/etc/nginx/conf.d/gracedemo.conf", "127.0.0.1:8081", "nginx -g 'daemon off;'"},
}

// The balancers notice within the lame duck, and systemd waits long enough.
func TestNumbersFit(t *testing.T) {
	duration := func(file, pattern string) time.Duration {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`(?m)^[^#\n]*` + pattern).FindSubmatch(text)
		if m == nil {
			t.Fatalf("%s: no %s", file, pattern)
		}
		d, err := time.ParseDuration(string(m[1]))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		return d
	}
	const unit, haproxy, nginx = "gracedemo@.service", "haproxy.cfg", "nginx.conf"
	lameDuck, drain := duration(unit, `-lame-duck (\S+)`), time.Minute

	checks := duration(haproxy, `\binter (\S+) fall 2 `)*2 + duration(haproxy, `timeout check (\S+)`)
	if checks > lameDuck {
		t.Errorf("haproxy may need %v to notice what lasts %v", checks, lameDuck)
	}
	if keep := duration(nginx, `\bkeepalive_timeout ([^;]+)`); keep > lameDuck/2 {
		t.Errorf("nginx keeps an idle connection for %v, more than half of %v", keep, lameDuck)
	}
	if stop := duration(unit, `TimeoutStopSec=(\d+s)`); stop <= lameDuck+drain {
		t.Errorf("systemd waits %v for a lame duck of %v and a drain of %v", stop, lameDuck, drain)
	}
	for file, pattern := range map[string]string{haproxy: `timeout server (\S+)`, nginx: `proxy_read_timeout ([^;]+)`} {
		if wait := duration(file, pattern); wait <= drain {
			t.Errorf("%s waits %v for an answer, the drain %v", file, wait, drain)
		}
	}
}

// Clients that never retry notice nothing, whether the instances behind the balancer are
// reloaded or stopped and started.
func TestRollingRestartLosesNothing(t *testing.T) {
	driver.OnlyAll(t)
	systemd.Need(t)
	if err := os.Symlink(systemd.Program(t, "gracedemo"), "/usr/local/bin/gracedemo"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("gracedemo@.service")
	if err != nil {
		t.Fatal(err)
	}
	var instances []*systemd.Unit
	for n := range 3 {
		u := systemd.System.Write(t, fmt.Sprintf("gracedemo@%d.service", n+1), string(text))
		u.Do("start")
		instances = append(instances, u)
	}

	loads := map[string]*load{}
	for _, b := range balancers {
		path, err := exec.LookPath(b.name)
		if err != nil {
			t.Logf("no %s here", b.name)
			continue
		}
		config, err := os.ReadFile(b.file)
		if b.name == "haproxy" {
			// What it learns within the lame duck has to be enough: it does not try again.
			config = bytes.Replace(config, []byte("defaults\n"), []byte("defaults\n\tretries 0\n"), 1)
		}
		if err == nil {
			err = os.MkdirAll(filepath.Dir(b.to), 0o755)
		}
		if err == nil {
			err = os.WriteFile(b.to, config, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		command := strings.Replace(b.command, b.name, path, 1)
		systemd.System.Write(t, "balancer-"+b.name+".service", "[Service]\nExecStart="+command+"\n").Do("start")
		loads[b.name] = startLoad(t, b.addr)
	}
	if len(loads) == 0 {
		t.Skip("neither haproxy nor nginx is here")
	}
	for _, verb := range []string{"reload", "restart"} {
		for _, u := range instances[:driver.Times(len(instances), 8)] {
			before := u.MainPID()
			u.Do(verb)
			u.AwaitAnotherMain(before)
			for _, l := range loads {
				l.answers.More(t, 50)
			}
		}
	}
	for name, l := range loads {
		l.stop()
		t.Logf("%s: %d requests, %d lost", name, l.answers.Load(), l.lost.Load())
	}
	for _, u := range instances {
		u.Systemctl("stop", "--no-block")
	}
	for _, u := range instances {
		u.Await("ActiveState", "inactive|failed")
		if result := u.Get("Result"); result != "success" {
			t.Errorf("Result of %s is %q", u.Name, result)
		}
	}
}

// A load is clients that send POST requests over connections that they keep, with a pause
// in between, and none of them twice.
type load struct {
	answers driver.Counter
	lost    atomic.Int64
	stop    func()
}

func startLoad(t *testing.T, addr string) *load {
	t.Helper()
	const clients = 16
	l := &load{}
	done := make(chan struct{})
	var wg sync.WaitGroup
	l.stop = sync.OnceFunc(func() { close(done); wg.Wait() })
	t.Cleanup(l.stop)
	driver.Eventually(t, addr+" to answer", func() bool { return post(http.DefaultClient, addr) == nil })
	for i := range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			c := &http.Client{Transport: transport, Timeout: driver.Patience}
			for {
				if err := post(c, addr); err != nil {
					l.lost.Add(1)
					t.Errorf("%s: lost: %v", addr, err)
				}
				l.answers.Add()
				select {
				case <-time.After(time.Duration(3+10*i) * time.Millisecond):
				case <-done:
					return
				}
			}
		}()
	}
	return l
}

// post sends a request that net/http does not send twice.
func post(c *http.Client, addr string) error {
	resp, err := c.Post("http://"+addr+"/sleep/?duration=5ms", "text/plain", strings.NewReader("once"))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, answer)
	}
	return err
}
