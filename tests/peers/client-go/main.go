// A contender on client-go's leaderelection, as a component that uses it would be written, with the probe of Tenure's
// replicas: while it leads it sends one datagram `TOKEN IDENTITY NUMBER` per millisecond. Its token is leaseTransitions,
// which is as near to a token as client-go comes.
//
// A component that loses its lease exits, and its container is started again. This one contends anew under a new
// identity instead, which is the same to everybody else and does not run into the kubelet's back-off.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// The resolution of the probe.
const tick = time.Millisecond

type settings struct {
	namespace, lease, pod, probe              string
	leaseDuration, renewDeadline, retryPeriod time.Duration
	release                                   bool
	stopTakes                                 time.Duration
}

func main() {
	var s settings
	flag.StringVar(&s.namespace, "namespace", "default", "namespace of the Lease")
	flag.StringVar(&s.lease, "lease", "", "name of the Lease")
	flag.StringVar(&s.pod, "pod", os.Getenv("POD_NAME"), "what the identities begin with")
	flag.StringVar(&s.probe, "probe", os.Getenv("TENURE_PROBE"), "address that a datagram is sent to each millisecond while leading")
	flag.DurationVar(&s.leaseDuration, "lease-duration", 15*time.Second, "client-go's LeaseDuration")
	flag.DurationVar(&s.renewDeadline, "renew-deadline", 10*time.Second, "client-go's RenewDeadline")
	flag.DurationVar(&s.retryPeriod, "retry-period", 2*time.Second, "client-go's RetryPeriod")
	flag.BoolVar(&s.release, "release-on-cancel", false, "client-go's ReleaseOnCancel")
	flag.DurationVar(&s.stopTakes, "stop-takes", 0, "work on this long after the lease is lost or the process is told to stop")
	klog.InitFlags(nil)
	flag.Parse()

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	if err := run(ctx, s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run contends until ctx ends, and returns when the work has ended, too.
func run(ctx context.Context, s settings) error {
	if s.lease == "" || s.pod == "" || s.probe == "" {
		return errors.New("-lease, -pod and -probe are needed")
	}
	// The first of these is what a pod has, the second what KUBECONFIG names.
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return err
	}
	// As resourcelock.NewFromKubeconfig has it: half of the deadline for each try.
	config.Timeout = s.renewDeadline / 2
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(config, "leader-election"))
	if err != nil {
		return err
	}
	socket, err := net.Dial("udp", s.probe)
	if err != nil {
		return err
	}
	defer socket.Close()
	var number uint64
	for ctx.Err() == nil {
		if err := term(ctx, s, client, socket, &number); err != nil {
			return err
		}
	}
	return nil
}

// term contends under one identity: until ctx ends, or until a lease that was won is lost and the work has ended.
func term(ctx context.Context, s settings, client kubernetes.Interface, socket net.Conn, number *uint64) error {
	suffix := make([]byte, 4)
	if _, err := rand.Read(suffix); err != nil {
		return err
	}
	identity := s.pod + "_" + hex.EncodeToString(suffix)
	lock := &recorder{Interface: &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: s.namespace, Name: s.lease},
		Client:     client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
	}}
	ended := make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            lock,
		LeaseDuration:   s.leaseDuration,
		RenewDeadline:   s.renewDeadline,
		RetryPeriod:     s.retryPeriod,
		ReleaseOnCancel: s.release,
		Name:            s.lease,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				defer close(ended)
				work(ctx, s.stopTakes, lock.transitions.Load(), identity, socket, number)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	elector.Run(ctx)
	// OnStartedLeading is called exactly when the lease was won, and maybe not before Run has returned.
	if lock.won.Load() {
		<-ended
	}
	return nil
}

// work sends datagrams until ctx ends, and for stopTakes longer.
func work(ctx context.Context, stopTakes time.Duration, token int64, identity string, socket net.Conn, number *uint64) {
	ticks := time.NewTicker(tick)
	defer ticks.Stop()
	var stop <-chan time.Time
	told := ctx.Done()
	for {
		// Nobody may be listening yet, or any more: what is measured is what arrives.
		_, _ = fmt.Fprintf(socket, "%d %s %d", token, identity, *number)
		*number++
		select {
		case <-told:
			if stopTakes == 0 {
				return
			}
			told, stop = nil, time.After(stopTakes)
		case <-stop:
			return
		case <-ticks.C:
		}
	}
}

// recorder is a lock that remembers the transitions of what it has written: the elector tells them nobody.
type recorder struct {
	resourcelock.Interface
	transitions atomic.Int64
	won         atomic.Bool
}

func (r *recorder) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return r.remember(record, r.Interface.Create(ctx, record))
}

func (r *recorder) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return r.remember(record, r.Interface.Update(ctx, record))
}

func (r *recorder) remember(record resourcelock.LeaderElectionRecord, err error) error {
	if err == nil && record.HolderIdentity == r.Identity() {
		r.transitions.Store(int64(record.LeaderTransitions))
		r.won.Store(true)
	}
	return err
}
