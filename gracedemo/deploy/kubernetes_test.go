//go:build linux

package deploy

import (
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// No cluster is at hand. kubectl itself decodes the objects into those that the
// cluster knows, and what it does not know is missing then.
func TestKubernetesObjectsHaveNoUnknownFields(t *testing.T) {
	driver.NotShort(t)
	need(t, "kubectl")
	for _, object := range objects(t) {
		written := decode(t, object)
		kind := fmt.Sprint(written["kind"])
		var known map[string]any
		switch kind {
		case "Deployment":
			known = decode(t, kubectl(t, object, "set", "resources", "--limits=cpu=1"))
		case "Service":
			known = decode(t, kubectl(t, object, "set", "selector", "app=gracedemo"))
		default:
			t.Fatalf("how to check a %s?", kind)
		}
		for path, value := range leaves(written) {
			if got := leaves(known)[path]; got != value {
				t.Errorf("%s: %s is %q to kubectl, written %q", kind, path, got, value)
			}
		}
	}
}

const image = "localhost/gracedemo"

func TestKubernetesDeploymentFitsTheDemo(t *testing.T) {
	need(t, "kubectl")
	var deployment, service map[string]string
	for _, object := range objects(t) {
		switch o := decode(t, object); o["kind"] {
		case "Deployment":
			deployment = leaves(o)
		case "Service":
			service = leaves(o)
		}
	}
	const pod, container = ".spec.template.spec", ".spec.template.spec.containers[0]"
	number := func(path string) int {
		t.Helper()
		n, err := strconv.Atoi(deployment[path])
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return n
	}

	// The demo drains for a minute at most.
	if deployment[container+".args[0]"] != "-lame-duck" {
		t.Errorf("the first argument is %q, want -lame-duck", deployment[container+".args[0]"])
	}
	lameDuck, err := time.ParseDuration(deployment[container+".args[1]"])
	if err != nil {
		t.Error(err)
	}
	seconds := func(path string) time.Duration { t.Helper(); return time.Duration(number(path)) * time.Second }
	if grace := seconds(pod + ".terminationGracePeriodSeconds"); grace <= lameDuck+time.Minute {
		t.Errorf("pods are killed after %v: too early for a lame duck of %v and a drain of 60 s", grace, lameDuck)
	}
	if probed := seconds(container+".readinessProbe.periodSeconds") * time.Duration(number(container+".readinessProbe.failureThreshold")); probed > lameDuck {
		t.Errorf("the probe takes %v to notice what lasts %v", probed, lameDuck)
	}
	for path := range deployment {
		if strings.Contains(path, "preStop") {
			t.Errorf("%s keeps pods from learning that they stop", path)
		}
	}
	if unavailable := deployment[".spec.strategy.rollingUpdate.maxUnavailable"]; unavailable != "0" {
		t.Errorf("%s pods may be missing during an update", unavailable)
	}
	ports := map[string]string{} // number by name
	for i, addr := range []string{"48567", "48568", "48569"} {
		port := fmt.Sprintf("%s.ports[%d]", container, i)
		ports[deployment[port+".name"]] = deployment[port+".containerPort"]
		if deployment[port+".containerPort"] != addr {
			t.Errorf("port %d is %s, the demo's is %s", i, deployment[port+".containerPort"], addr)
		}
		if name := service[fmt.Sprintf(".spec.ports[%d].targetPort", i)]; ports[name] != addr {
			t.Errorf("the service's port %d leads to %q, which is %q", i, name, ports[name])
		}
	}
	if probe := deployment[container+".readinessProbe.httpGet.port"]; ports[probe] != "48567" {
		t.Errorf("the probe's port is %q", probe)
	}
	if got := deployment[container+".readinessProbe.httpGet.path"]; got != "/ready" {
		t.Errorf("the probe's path is %q", got)
	}
	for what, app := range map[string]string{
		"deployment's": deployment[".spec.selector.matchLabels.app"],
		"service's":    service[".spec.selector.app"],
	} {
		if label := deployment[".spec.template.metadata.labels.app"]; app == "" || app != label {
			t.Errorf("the %s selector is %q, the pods' label %q", what, app, label)
		}
	}
	if deployment[container+".command[0]"] != "" {
		t.Errorf("the image's entry point is replaced: then nobody stays")
	}
	if deployment[container+".image"] != image {
		t.Errorf("the image is %q", deployment[container+".image"])
	}
}

// objects returns the deployment and the service in JSON.
func objects(t *testing.T) (all []string) {
	t.Helper()
	out := run(t, "kubectl", "label", "--local", "-f", "fleet/kubernetes.yaml", "app=gracedemo", "--overwrite", "-o", "json")
	for in := json.NewDecoder(strings.NewReader(out)); ; {
		var object json.RawMessage
		if err := in.Decode(&object); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		all = append(all, string(object))
	}
}

// kubectl runs a command of kubectl on one object, without a cluster.
func kubectl(t *testing.T, object string, args ...string) string {
	t.Helper()
	args = append(args[:2:2], append([]string{"--local", "-f", "-", "-o", "json"}, args[2:]...)...)
	cmd := exec.Command("kubectl", args...)
	cmd.Stdin = strings.NewReader(object)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func decode(t *testing.T, object string) (fields map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(object), &fields); err != nil {
		t.Fatalf("%v\n%s", err, object)
	}
	return fields
}

// leaves returns the values of an object by their paths.
func leaves(object any) map[string]string {
	all := map[string]string{}
	var walk func(path string, value any)
	walk = func(path string, value any) {
		switch value := value.(type) {
		case map[string]any:
			for name, v := range value {
				walk(path+"."+name, v)
			}
		case []any:
			for i, v := range value {
				walk(fmt.Sprintf("%s[%d]", path, i), v)
			}
		default:
			all[path] = fmt.Sprint(value)
		}
	}
	walk("", object)
	return all
}
