package dev.pidone.peers;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.EnumSet;
import javax.servlet.DispatcherType;

import com.netflix.appinfo.ApplicationInfoManager;
import com.netflix.appinfo.InstanceInfo.InstanceStatus;
import com.netflix.eureka.EurekaBootStrap;
import com.netflix.eureka.ServerRequestAuthFilter;
import com.netflix.eureka.StatusFilter;
import com.sun.jersey.api.container.filter.GZIPContentEncodingFilter;
import com.sun.jersey.spi.container.servlet.ServletContainer;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.servlet.DefaultServlet;
import org.eclipse.jetty.servlet.FilterHolder;
import org.eclipse.jetty.servlet.ServletContextHandler;

/**
 * One Eureka server as Netflix ships it, with the listener and the filters of its war. Settings are system properties.
 * Each line of the input is a status that the server then has, or {@code user NAME PASSWORD}. It ends with its input.
 */
public final class Peer {
    public static void main(String[] args) throws Exception {
        ServletContextHandler context = new ServletContextHandler();
        context.setContextPath("/eureka");
        context.addEventListener(new EurekaBootStrap());
        EnumSet<DispatcherType> requests = EnumSet.of(DispatcherType.REQUEST);
        Users users = new Users(System.getProperty("eureka.users", ""));
        context.addFilter(new FilterHolder(users), "/*", requests);
        context.addFilter(StatusFilter.class, "/*", requests);
        context.addFilter(ServerRequestAuthFilter.class, "/*", requests);
        FilterHolder jersey = new FilterHolder(ServletContainer.class);
        jersey.setInitParameter("com.sun.jersey.config.property.packages", "com.netflix");
        for (String way : new String[] {"Request", "Response"}) {
            jersey.setInitParameter(
                "com.sun.jersey.spi.container.Container" + way + "Filters", GZIPContentEncodingFilter.class.getName());
        }
        context.addFilter(jersey, "/*", requests);
        context.addServlet(DefaultServlet.class, "/");

        Server server = new Server();
        ServerConnector connector = new ServerConnector(server);
        connector.setHost("127.0.0.1");
        connector.setPort(Integer.getInteger("eureka.port"));
        server.addConnector(connector);
        server.setHandler(context);
        server.start();

        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split(" ");
            if (words[0].equals("user")) {
                users.set(words[1], words[2]);
            } else {
                ApplicationInfoManager.getInstance().setInstanceStatus(InstanceStatus.valueOf(line));
            }
            System.out.println(line);
        }
        Runtime.getRuntime().halt(0);
    }
}
