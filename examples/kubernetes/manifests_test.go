package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/seed-121bbccf/graceful"
)

// decode reads a manifest as the API server does with strict field validation:
// an unknown or repeated field is an error.
func decode[T any](t *testing.T, file, apiVersion, kind string) *T {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	obj := new(T)
	if err := yaml.UnmarshalStrict(b, obj); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	var typ metav1.TypeMeta
	if err := yaml.Unmarshal(b, &typ); err != nil || typ.APIVersion != apiVersion || typ.Kind != kind {
		t.Fatalf("%s is %+v, %v", file, typ, err)
	}
	return obj
}

func deployment(t *testing.T) *appsv1.Deployment {
	return decode[appsv1.Deployment](t, "deployment.yaml", "apps/v1", "Deployment")
}

// container returns the service's container, and the Server that its arguments
// make.
func container(t *testing.T) (corev1.Container, *graceful.Server) {
	t.Helper()
	c := deployment(t).Spec.Template.Spec.Containers[0]
	srv, err := newServer(c.Args)
	if err != nil {
		t.Fatal(err)
	}
	return c, srv
}

// The grace period holds the delay, the timeout, and some time to be killed in.
func TestGracePeriod(t *testing.T) {
	_, srv := container(t)
	grace := deployment(t).Spec.Template.Spec.TerminationGracePeriodSeconds
	if grace == nil {
		t.Fatal("terminationGracePeriodSeconds is left to its default")
	}
	if got, need := time.Duration(*grace)*time.Second, srv.ShutdownDelay+srv.Timeout; got < need+2*time.Second {
		t.Errorf("terminationGracePeriodSeconds is %v, ShutdownDelay and Timeout are %v", got, need)
	}
	if srv.ShutdownDelay < 5*time.Second {
		t.Errorf("ShutdownDelay is %v: nodes may need longer to notice", srv.ShutdownDelay)
	}
}

// A preStop hook that waits repeats ShutdownDelay, and takes its time from the
// same grace period.
func TestNoPreStopSleep(t *testing.T) {
	pod := deployment(t).Spec.Template.Spec
	for _, c := range append(pod.InitContainers, pod.Containers...) {
		if c.Lifecycle == nil || c.Lifecycle.PreStop == nil {
			continue
		}
		if hook := c.Lifecycle.PreStop; hook.Sleep != nil || hook.Exec != nil && strings.Contains(strings.Join(hook.Exec.Command, " "), "sleep") {
			t.Errorf("%s: the preStop hook sleeps", c.Name)
		}
	}
}

// The probes ask for what there is, on the port on which it is.
func TestProbes(t *testing.T) {
	c, srv := container(t)
	_, port, err := net.SplitHostPort(srv.Addr)
	if err != nil {
		t.Fatal(err)
	}
	get := func(h http.Handler, path string) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code
	}
	if code := get(srv.Handler, "/readyz"); code != 503 {
		t.Errorf("before it is ready: %d", code)
	}
	srv.Health.SetReady(true)
	for name, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "readiness": c.ReadinessProbe, "liveness": c.LivenessProbe} {
		if p == nil || p.HTTPGet == nil {
			t.Errorf("%s: no probe by HTTP", name)
			continue
		}
		if got := containerPort(c, p.HTTPGet.Port); strconv.Itoa(int(got)) != port {
			t.Errorf("%s: port %v is %d, the service has %s", name, p.HTTPGet.Port.String(), got, port)
		}
		if code := get(srv.Handler, p.HTTPGet.Path); code != 200 {
			t.Errorf("%s: GET %s: %d", name, p.HTTPGet.Path, code)
		}
	}
	srv.Health.Shutdown()
	if ready, live := get(srv.Handler, c.ReadinessProbe.HTTPGet.Path), get(srv.Handler, c.LivenessProbe.HTTPGet.Path); ready != 503 || live != 200 {
		t.Errorf("shutting down: ready %d, live %d", ready, live)
	}
}

// containerPort resolves a port of c by number or name, as Kubernetes does.
func containerPort(c corev1.Container, port intstr.IntOrString) int32 {
	i := slices.IndexFunc(c.Ports, func(p corev1.ContainerPort) bool {
		return port.Type == intstr.String && p.Name == port.StrVal || port.Type == intstr.Int && p.ContainerPort == port.IntVal
	})
	if i < 0 {
		return 0
	}
	return c.Ports[i].ContainerPort
}

// Service and PodDisruptionBudget mean the Deployment's Pods, and leave room
// for one to stop.
func TestBelongTogether(t *testing.T) {
	d := deployment(t)
	c, _ := container(t)
	service := decode[corev1.Service](t, "service.yaml", "v1", "Service")
	budget := decode[policyv1.PodDisruptionBudget](t, "poddisruptionbudget.yaml", "policy/v1", "PodDisruptionBudget")
	pods := labels.Set(d.Spec.Template.Labels)
	if !labels.SelectorFromSet(service.Spec.Selector).Matches(pods) {
		t.Error("the Service selects other Pods")
	}
	if containerPort(c, service.Spec.Ports[0].TargetPort) == 0 {
		t.Error("the Service's targetPort is no port of the container")
	}
	for name, s := range map[string]*metav1.LabelSelector{"Deployment": d.Spec.Selector, "PodDisruptionBudget": budget.Spec.Selector} {
		sel, err := metav1.LabelSelectorAsSelector(s)
		if err != nil || !sel.Matches(pods) {
			t.Errorf("the %s selects other Pods (%v)", name, err)
		}
	}
	replicas := int(*d.Spec.Replicas)
	allowed, err := intstr.GetScaledValueFromIntOrPercent(budget.Spec.MaxUnavailable, replicas, true)
	if err != nil || allowed < 1 || allowed >= replicas {
		t.Errorf("of %d Pods %d may be away (%v)", replicas, allowed, err)
	}
	if got := d.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue(); got != 0 {
		t.Errorf("%d Pods may be away during an update", got)
	}
}

// The container does not run as root, neither by the manifest nor by the image.
func TestNotRoot(t *testing.T) {
	pod := deployment(t).Spec.Template.Spec
	sc := pod.SecurityContext
	if sc == nil || sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot || sc.RunAsUser == nil || *sc.RunAsUser == 0 {
		t.Fatalf("%+v", sc)
	}
	if user := dockerfile(t)["USER"]; user != strconv.FormatInt(*sc.RunAsUser, 10)+":"+strconv.FormatInt(*sc.RunAsGroup, 10) {
		t.Errorf("the Dockerfile's user is %s", user)
	}
	c := pod.Containers[0].SecurityContext
	if *c.AllowPrivilegeEscalation || !*c.ReadOnlyRootFilesystem || !slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("%+v", c)
	}
}

// dockerfile returns the last of each instruction.
func dockerfile(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	last := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		if name, rest, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			last[name] = rest
		}
	}
	return last
}

// The image is empty but for what is copied, and its entry point is no shell.
func TestImage(t *testing.T) {
	d := dockerfile(t)
	if d["FROM"] != "scratch" || d["ENTRYPOINT"] != `["/hello"]` || !strings.HasPrefix(d["RUN"], "CGO_ENABLED=0 ") {
		t.Errorf("%q", d)
	}
}
